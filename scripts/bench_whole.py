"""Whole processes in turn: `lrft train` with packed rows, and PEFT with the same rows padded, loading and all.

    python scripts/bench_whole.py --gsm8k FILE --pairs 5     ten examples a step for PEFT, 4 rows of 512 for lrft
    python scripts/bench_whole.py                            the same with rows of random words
    python scripts/bench_whole.py --launch quickstart        lrft alone: from launch to the end of step 1
    python scripts/bench_whole.py --quick                    one pair of a few rows, whoever else uses the machine

Both go once over `--steps` times `--examples` rows. A process is timed from its start to its end, and to its first
step; its peak is the most memory that the system saw it hold. Every command runs once before (caches, conversions).
Processes during which others used more than `--foreign` cores are done again, as in bench_pairs.py. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench_memory import described
from bench_pairs import cpu_seconds, summary
from bench_record import leave
from bench_rows import Work, padded
from bench_settings import LR, PACKED_LENGTH, QUIET_PAIRS, Settings, parser, settings_of
from bench_sides import peer_side, require
from bench_train import guarded
from lrft.data.encoded import Encoded
from lrft.registry.errors import LrftError

ROOT = Path(__file__).parents[1]
FIRST = re.compile(r"step 1/\d+")
STEPS = 12
QUICK = {"pairs": 1, "foreign": float("inf"), "eager": True, "examples": 2}
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Ran:
    """One process: seconds to the end of its first step and of itself, bytes at most, cores that others used."""

    first: float
    seconds: float
    peak: int
    foreign: float


@dataclass(frozen=True)
class Process:
    """What is run; `command` is given a folder that is not there yet."""

    name: str
    command: Callable[[Path], list[str]]


def main(given: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Start the processes, or be PEFT's.

    Raises:
        UsageError: PEFT is not installed, or has no form of the method.
        LrftError: a process failed.
    """
    made = parser(__doc__)
    made.set_defaults(pairs=5)
    made.add_argument("--peer", default="peft", choices=["peft"])
    made.add_argument("--steps", type=int, default=STEPS, help="of the peer")
    made.add_argument("--launch", metavar="RECIPE", help="lrft alone, to its first step")
    made.add_argument("--quick", action="store_true", help="to see that it runs; no figure comes of it")
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args(given)
    settings = settings_of(arguments)
    if arguments.child:
        train_padded(settings, json.loads(arguments.child.read_text(encoding="utf-8")))
        return None
    steps = arguments.steps
    if arguments.quick:
        settings, steps = settings.but(**QUICK), 2
    with tempfile.TemporaryDirectory(prefix="bench-whole-") as name:
        if arguments.launch:
            result = launch(settings, arguments.launch, Path(name))
        else:
            require(arguments.peer)
            result = beside(settings, steps, Path(name))
    return leave("whole", settings.record(), result, given, arguments.record)


def launch(settings: Settings, recipe: str, scratch: Path) -> dict[str, Any]:
    """Seconds from launch to the end of step 1 of a recipe: the quiet ones, and their median where there are enough."""
    process = Process("lrft", lambda out: lrft_command(recipe, out, settings.device))
    folders = iter(scratch / str(number) for number in range(10**6))
    run(process, next(folders), settings, to_first=True)
    found: list[float] = []
    lost = 0
    while len(found) < settings.pairs and lost < 4 * settings.pairs:
        ran = run(process, next(folders), settings, to_first=True)
        lost += ran.foreign > settings.foreign
        found += [ran.first] if ran.foreign <= settings.foreign else []
    enough = len(found) >= QUIET_PAIRS
    result: dict[str, Any] = {"recipe": recipe, "n": len(found), "discarded": lost, "samples": found}
    result["first"] = (
        {"median": statistics.median(found), "min": min(found), "max": max(found)} if enough else None
    )
    result["missed"] = None if enough else f"only {len(found)} quiet launches, {lost} discarded: no figure"
    return result


def beside(settings: Settings, steps: int, scratch: Path) -> dict[str, Any]:
    """A pairing of whole processes."""
    rows = rows_of(settings, steps)
    data = scratch / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = scratch / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(settings, data)), encoding="utf-8")  # which is YAML too
    asked = scratch / "asked.json"
    asked.write_text(json.dumps({"rows": rows, **described(settings)}), encoding="utf-8")
    words = [sys.executable, __file__, *settings.arguments(), "--child", str(asked)]
    ours = Process("lrft:whole", lambda out: lrft_command(str(recipe), out, settings.device))
    theirs = Process("peft:whole", lambda out: words)
    tokens = sum(len(one.input_ids) for one in encoded(settings, rows))
    return {"steps": steps, "pairings": [in_turn(settings, ours, theirs, tokens, scratch)]}


def in_turn(settings: Settings, a: Process, b: Process, tokens: int, scratch: Path) -> dict[str, Any]:
    """Quiet pairs of processes, A B then B A, with the seconds to the first step and the peak of each."""
    folders = iter(scratch / str(number) for number in range(10**6))
    for process in (a, b):
        run(process, next(folders), settings)
    pairs: list[dict[str, float]] = []
    lost = 0
    while len(pairs) < settings.pairs and lost < 4 * settings.pairs:
        order = (a, b) if len(pairs) % 2 == 0 else (b, a)
        ran = {process.name: run(process, next(folders), settings) for process in order}
        if max(one.foreign for one in ran.values()) > settings.foreign:
            lost += 1
            continue
        pair = {"item": 0.0}
        for name, one in ran.items():
            pair |= {name: one.seconds, f"{name} first": one.first, f"{name} peak": float(one.peak)}
        pairs.append(pair)
    found = summary(a, b, pairs, lost, [tokens])  # type: ignore[arg-type]
    for key in ("first", "peak"):
        if pairs:
            found[key] = {
                p.name: statistics.median(pair[f"{p.name} {key}"] for pair in pairs) for p in (a, b)
            }
    return found


def run(process: Process, out: Path, settings: Settings, to_first: bool = False) -> Ran:
    """Run a process, or until its first step.

    Raises:
        LrftError: it failed, or took no step; with the last line it said.
    """
    roots = [str(ROOT), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots)}
    busy, own, began, first, last = cpu_seconds(), time.process_time(), time.perf_counter(), None, ""
    child = subprocess.Popen(
        process.command(out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert child.stderr is not None
    with child.stderr:
        for line in child.stderr:
            last = line.strip() or last
            if first is None and FIRST.match(line):
                first = time.perf_counter() - began
                if to_first:
                    child.kill()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if first is None or (child.returncode and not to_first):
        raise LrftError(f"the process of {process.name} ended with {child.returncode}: {last}")
    used = usage.ru_utime + usage.ru_stime + time.process_time() - own
    print(f"{process.name}: step 1 after {first:.1f} s, {seconds:.1f} s in all", file=sys.stderr, flush=True)
    return Ran(first, seconds, usage.ru_maxrss * 1024, max(0.0, cpu_seconds() - busy - used) / seconds)


def lrft_command(recipe: str, out: Path, device: str) -> list[str]:
    """`lrft train` of a recipe into a folder, without scores at the end."""
    return [
        sys.executable,
        "-m",
        "lrft",
        "train",
        recipe,
        "eval.at_end=false",
        f"train.device={device}",
        "--out",
        str(out),
    ]


def recipe_of(settings: Settings, data: Path) -> dict[str, Any]:
    """The recipe of lrft's process: the rows once, packed."""
    given = settings.recipe().model_dump(mode="json", exclude_unset=True)
    length = PACKED_LENGTH if settings.gsm8k else settings.length
    given["data"] = {"train": str(data), "format": {"method": "prompt_completion", "render": "plain"}}
    given["train"] = {"epochs": 1, "batch_size": settings.rows, "max_length": length, "packing": True}
    given["optimizer"] = {"method": "adamw", "lr": LR}
    return given


def rows_of(settings: Settings, steps: int) -> Rows:
    """Prompts and completions: of GSM8K those short enough, else of random words, of a sixth to half of `length`."""
    wanted = steps * settings.examples
    if settings.gsm8k is None:
        draws = random.Random(0)
        sizes = [
            draws.randint(max(2, settings.length // 6), max(3, settings.length // 2)) for _ in range(wanted)
        ]
        texts = [" ".join(draws.choice("abcdefgh") for _ in range(size)) for size in sizes]
        return [{"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]} for text in texts]
    found: Rows = []
    for line in settings.gsm8k.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        one = {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"}
        if len(encoded(settings, [one])[0].input_ids) <= PACKED_LENGTH:
            found.append(one)
        if len(found) == wanted:
            break
    return found


def encoded(settings: Settings, rows: Rows) -> list[Encoded]:
    """The tokens of each row, of which the completion and its end are learnt."""
    tokenizer = tokenizer_of(settings)
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        answer = [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]
        found.append(Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return found


@cache
def tokenizer_of(settings: Settings) -> Any:
    """The model's, loaded once."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(settings.folder())


def train_padded(settings: Settings, asked: dict[str, Any]) -> None:
    """What PEFT's process does: load, and go over the rows once, padded, `examples` of them a step."""
    side = peer_side("peft", settings, asked["keys"], asked["trained"])
    examples = encoded(settings, asked["rows"])
    starts = range(0, len(examples), settings.examples)
    torch.manual_seed(0)
    for number, start in enumerate(starts, 1):
        part = examples[start : start + settings.examples]
        loss = side.step(Work(None, padded(part), part))  # type: ignore[arg-type]
        print(f"step {number}/{len(starts)}  loss {loss:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
