"""A signal in any phase of what adds, moves, compresses, combines, measures, federates and serves."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.damaged_inputs import FEDERATED, IN_TURN, OFFLOAD, Prepared
from tests.reliability.full_disk import Bench, call, contents
from tests.reliability.struck import files_in, scratch_in, struck

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
WORDS = {INT: "interrupted (SIGINT): ", TERM: "terminated (SIGTERM): ", HUP: "hung up (SIGHUP): "}
SAVED = "add --resume to go on"
COMMANDS = {
    "posterior": (("choice",), "posterior choice"),
    "eval-posterior": (("choice",), "eval choice --posterior"),
    "combine": (("run",), "combine run run --method svd --eval --out out"),
    "delta-diff": (("base", "tuned"), "delta diff base tuned --out out"),
    "delta-apply": (("difference", "base"), "delta apply difference base --out out"),
    "delta-compress": (
        ("difference",),
        "delta compress difference --ratio 0.5 --recipe recipe.yaml --out out",
    ),
    "merge-add": (("run",), "merge run --add run --out out"),
    "merge-in-bits": (("run",), "merge run --requantize nf4 --keep-rank 2 --out out"),
    "federate": ((), ("federate", "recipe.yaml", "--out", "out", "train.max_steps=null", FEDERATED)),
    "train-offload": ((), ("train", "recipe.yaml", "--out", "out", OFFLOAD)),
    "train-in-turn": ((), ("train", "choices.yaml", "--out", "out", *IN_TURN)),
    "serve": (("run",), "serve run --port 0"),
}
TRAINS = {"federate", "train-offload", "train-in-turn"}


class Case(NamedTuple):
    """A command, and the function that looks for the n-th time as the signal comes; `kept` is in the sentence."""

    command: str
    place: str
    nth: int
    number: int
    kept: str = "the same command"

    def __str__(self) -> str:
        return f"{self.command}-{self.place}-{self.nth}"


WAS, NOTHING = "out is as it was", "nothing was written; the same command begins again"
POSTERIOR = "no posterior was written; the same command measures all of it"
CASES = [
    Case("posterior", "load_model", 1, INT, POSTERIOR),
    Case("posterior", "attach", 3, TERM, POSTERIOR),
    Case("posterior", "lines_of", 9, HUP, POSTERIOR),
    Case("posterior", "asked_to_stop", 1, TERM, "no posterior was written; the same command does all of it"),
    Case("posterior", "asked_to_stop", 2, HUP, "no posterior was written; the same command does all of it"),
    Case("eval-posterior", "fingerprint", 4, HUP),
    Case("eval-posterior", "attach", 2, INT),
    Case("eval-posterior", "asked_to_stop", 1, TERM, "nothing was scored; the same command"),
    Case("combine", "load_recipe", 2, HUP, NOTHING),
    Case("combine", "fingerprint", 3, TERM, NOTHING),
    Case("combine", "combined", 2, INT, NOTHING),
    Case("combine", "attach", 4, TERM, WAS),
    Case("combine", "compare", 1, HUP, WAS),
    Case("combine", "asked_to_stop", 2, INT, WAS),
    Case("delta-diff", "load_model", 3, TERM, NOTHING),
    Case("delta-diff", "subtract", 7, INT, NOTHING),
    Case("delta-diff", "_read", 2, HUP, NOTHING),
    Case("delta-apply", "fingerprint", 9, HUP, NOTHING),
    Case("delta-apply", "add", 12, TERM, NOTHING),
    Case("delta-apply", "write_classifier", 1, INT, WAS),
    Case("delta-compress", "add", 5, TERM, NOTHING),
    Case("delta-compress", "calibrate", 2, HUP, NOTHING),
    Case("delta-compress", "in_turn", 1, INT, NOTHING),
    Case("delta-compress", "compare", 1, TERM, NOTHING),
    Case("merge-add", "open_model", 3, TERM),
    Case("merge-add", "merge_into", 9, INT, "is as it was; the same command"),
    Case("merge-add", "compare", 1, HUP, "is as it was; the same command"),
    Case("merge-in-bits", "calibrate", 2, INT, "is as it was; the same command"),
    Case("merge-in-bits", "round_in_turn", 5, TERM, "is as it was; the same command"),
    Case("merge-in-bits", "round_to_nearest", 3, HUP, "is as it was; the same command"),
    Case("merge-in-bits", "compare", 2, INT, "is as it was; the same command"),
    Case("federate", "encode_each", 4, HUP, "nothing was trained yet; the same command begins it"),
    Case("federate", "attach", 3, INT, "nothing was trained yet; the same command begins it"),
    Case("federate", "step_loss", 1, TERM, SAVED),
    Case("federate", "stop_if_asked", 2, INT, SAVED),
    Case("federate", "step_loss", 4, HUP, SAVED),
    Case("train-offload", "open_model", 1, HUP, "nothing was trained yet; the same command begins it"),
    Case("train-offload", "attach", 5, TERM, "nothing was trained yet; the same command begins it"),
    Case("train-offload", "step_loss", 1, INT, SAVED),
    Case("train-offload", "after_step", 2, TERM, SAVED),
    Case("train-in-turn", "pack", 2, TERM, "nothing was trained yet; the same command begins it"),
    Case("train-in-turn", "step_loss", 1, HUP, SAVED),
    Case("train-in-turn", "step_loss", 2, INT, SAVED),
    Case("serve", "_part", 1, INT, "nothing was answered"),
    Case("serve", "attach", 4, TERM, "nothing was answered"),
    Case("serve", "fingerprint", 2, HUP, "nothing was answered"),
]
QUICK = {"delta-diff-subtract-7"}


@pytest.fixture(scope="module")
def prepared(bench: Bench) -> Prepared:
    return Prepared(bench)


def place_of(prepared: Prepared, command: str, label: str) -> Path:
    takes = COMMANDS[command][0]
    place = prepared.place(takes, prepared.bench.folder)
    named = place.with_name(f"{command}-{label}")
    shutil.rmtree(named, ignore_errors=True)
    return place.rename(named)


def words_of(command: str) -> tuple[str, ...]:
    words = COMMANDS[command][1]
    return tuple(words.split()) if isinstance(words, str) else words


def struck_once(prepared: Prepared, case: Case) -> None:
    """The sentence, the exit code, what is left, and that the same command then does what it would have done."""
    place = place_of(prepared, case.command, "struck")
    before, words = files_in(place), words_of(case.command)
    with struck(case.place, case.number, case.nth) as blow:
        ended = call(place, words)
    assert blow.fell, blow.seen
    assert (ended.code, ended.raised) == (128 + case.number, ""), ended
    (said,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: {WORDS[case.number]}") and case.kept in said, said
    assert ended.err.rstrip().endswith(said) and "Traceback" not in ended.err
    assert scratch_in(place) == []
    if case.kept != SAVED:
        assert files_in(place) == before
    if case.command == "serve":
        return
    resumed = ("--resume",) if (place / "out" / "recipe.yaml").exists() else ()
    again = call(place, (*words, *resumed))
    assert again.code == 0, again
    whole = place_of(prepared, case.command, "whole")
    assert call(whole, words).code == 0
    made, wanted = contents(place), contents(whole)
    assert made.keys() == wanted.keys()
    odd = [name for name in made if made[name] != wanted[name]]
    if (
        case.command in TRAINS
    ):  # recipes hold where they were begun, and what is saved at a stop is not scored yet
        odd = [name for name in odd if name.endswith(".safetensors")]
        results = [json.loads((folder / "out" / "result.json").read_text()) for folder in (place, whole)]
        struck_result, whole_result = ([one.get("loss"), one.get("tasks")] for one in results)
        assert struck_result == whole_result
    assert odd == []


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=() if str(case) in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_it_stops_with_a_sentence_and_the_same_command_then_does_all_of_it(prepared, case):
    if case.command == "merge-in-bits":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if case.command == "serve":
        pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    struck_once(prepared, case)


def test_every_command_is_struck():
    assert {case.command for case in CASES} == COMMANDS.keys()
    assert {case.number for case in CASES} == {INT, TERM, HUP}
