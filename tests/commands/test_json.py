"""With --json standard output holds one document, however a command ends."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy
import pytest
import torch

from lrft.core import stop
from lrft.core.plain import plain
from lrft.lab.runs import local as runs
from lrft.training.gradient_check import GradientCheck

QUICK = [
    (["recipes", "ls"], lambda found: "quickstart" in found),
    (["recipes", "show", "quickstart", "train.seed=5"], lambda found: found["train"]["seed"] == 5),
    (["recipes", "show", "quickstart", "--origins"], lambda found: found["origins"]["train.seed"]),
    (["recipes", "cp", "quickstart", "mine.yaml"], lambda found: found == {"file": "mine.yaml"}),
    (["recipes", "validate", "quickstart"], lambda found: found["recipes"][0]["ok"] is True),
    (["recipes", "schema"], lambda found: "adapter" in found["properties"]),
    (["recipes", "diff", "quickstart", "quickstart"], lambda found: found == []),
    (["methods", "ls", "adapter"], lambda found: {row["axis"] for row in found} == {"adapter"}),
    (["methods", "show", "lora"], lambda found: found["name"] == "lora"),
    (["reproduce", "ls"], lambda found: all(isinstance(row["rows"], int) for row in found)),
    (["env"], lambda found: isinstance(found["cores"], int)),
]


def words(value):
    return "-".join(value) if isinstance(value, list) else ""


@pytest.mark.parametrize(("arguments", "holds"), QUICK, ids=words)
def test_a_command_that_succeeds_prints_one_document(call, arguments, holds):
    done = call(*arguments, "--json")
    assert done.code == 0 and holds(done.document)


COMMANDS = [
    *(["train"], ["eval"], ["chat"], ["generate"], ["merge"], ["export"], ["doctor"], ["find-lr"]),
    *(["inspect"], ["report"], ["compare"], ["sweep"], ["reproduce"], ["env"]),
    *(["recipes", name] for name in ("ls", "show", "cp", "validate", "schema", "diff")),
    *(["methods", name] for name in ("ls", "show")),
    *(["data", name] for name in ("show", "check")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=words)
def test_an_option_that_does_not_exist_is_an_error_in_the_document(call, command):
    for arguments in (["--bogus", "--json"], ["--json", "--bogus"]):
        done = call(*command, *arguments)
        error = done.document["error"]
        assert done.code == error["exit_code"] == 2 and error["kind"] == "UsageError"
        assert "--bogus" in error["message"]
        assert done.err.startswith("error: ")


WRONG = [
    (["train"], "recipe"),
    (["train", "nowhere.yaml"], "nowhere.yaml"),
    (["train", "nowhere.yaml", "--dry-run"], "nowhere.yaml"),
    (["eval"], "no run with a checkpoint"),
    (["eval", "--limit", "few"], "--limit"),
    (["generate", "prompts.txt", "--out", "x.jsonl"], "no run with a checkpoint"),
    (["generate", "prompts.txt"], "--out"),
    (["chat"], "no run with a checkpoint"),
    (["merge", "--out", "x"], "no run with a checkpoint"),
    (["merge"], "--out"),
    (["export", "--for", "vllm", "--out", "x"], "no run with a checkpoint"),
    (["export", "--for", "vlm", "--out", "x"], "did you mean vllm"),
    (["export", "--for", "vllm", "--out", "x", "--dtype", "int4"], "--dtype int4"),
    (["export", "--for", "vllm", "--out", "x", "--public"], "--push OWNER/NAME"),
    (["export", "--out", "x"], "--for"),
    (["doctor", "nowhere"], "is no run folder"),
    (["inspect"], "no run with a checkpoint"),
    (["inspect", "--below", "2"], "--below"),
    (["report"], "no run under runs/"),
    (["report", "no-such-run"], "no-such-run is not a run folder"),
    (["eval", "--checkpoint", "best"], "no run with a checkpoint"),
    (["find-lr"], "recipe"),
    (["find-lr", "nowhere.yaml"], "nowhere.yaml"),
    (["find-lr", "quickstart", "--from", "1", "--to", "0.1"], "rates have to rise"),
    (["find-lr", "quickstart", "--steps", "3"], "too few"),
    (["compare", "nowhere.yaml", "quickstart", "--out", "x"], "nowhere.yaml"),
    (["compare", "quickstart", "--out", "x", "--match", "luck"], "--match luck"),
    (["sweep", "quickstart", "--out", "x"], "a sweep needs a key with several values"),
    (["sweep", "nowhere.yaml", "adapter.rank=2,4", "--out", "x"], "nowhere.yaml"),
    (["reproduce", "no_such_table"], "no_such_table"),
    (["reproduce", "no_such_table", "--dry-run"], "no_such_table"),
    (["recipes", "show", "quikstart"], "did you mean quickstart"),
    (["recipes", "cp", "quickstart", "no/such/mine.yaml"], "no such folder"),
    (["recipes", "validate", "nowhere.yaml"], "nowhere.yaml"),
    (["recipes", "diff", "quickstart", "nowhere"], "nowhere"),
    (["methods", "ls", "no_axis"], "no_axis"),
    (["methods", "show", "no_method"], "no_method"),
    (["data", "show", "nowhere.yaml"], "nowhere.yaml"),
    (["data", "check", "nowhere.yaml"], "nowhere.yaml"),
    (["no_command"], "no_command"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=words)
def test_a_command_that_fails_prints_one_document_with_the_error(call, arguments, message):
    done = call(*arguments, "--json")
    error = done.document["error"]
    assert set(error) == {"message", "exit_code", "kind", "problems"}
    assert message in error["message"] and error["exit_code"] == done.code == 2
    assert "Traceback" not in done.err and f"error: {error['message']}" in done.err


def test_the_problems_of_a_recipe_say_where_they_are(call, recipe):
    recipe.write_text(recipe.read_text().replace("rank: 4", "rnak: 4"))
    done = call("train", recipe, "train.seed=x", "--json")
    error = done.document["error"]
    assert error["kind"] == "RecipeError"
    first, second = error["problems"]
    assert first == {
        "file": str(recipe),
        "line": 4,
        "key": "adapter.rnak",
        "message": "unknown key of lora; did you mean rank?",
    }
    assert second["file"] == "command line" and second["key"] == "train.seed"


def test_validate_lists_good_and_bad_recipes_beside_the_error(call, recipe):
    found = call("recipes", "validate", recipe, "quickstart", "nowhere", "--json").document
    assert [one["ok"] for one in found["recipes"]] == [True, True, False]
    assert found["error"]["problems"] == found["recipes"][2]["problems"]


def test_help_stays_text(call):
    assert call("train", "--help", "--json").out.lstrip().startswith("Usage")


def test_a_method_is_told_with_settings_and_traits(call):
    found = call("methods", "show", "dora", "--json").document
    settings = {one["name"]: one for one in found["settings"]}
    assert found["axis"] == "adapter" and "row norms" in found["doc"]
    assert settings["rank"]["default"] == 16 and "integer" in settings["rank"]["type"]
    assert "mergeable" in found["provides"] and found["requires"] == [] == found["also"]
    both = call("methods", "show", "lora_fa", "--json").document
    assert {both["axis"], *(one["axis"] for one in both["also"])} == {"adapter", "optimizer"}


def test_data_show_gives_the_text_in_segments(call, recipe):
    (row,) = call("data", "show", recipe, "--rows", 1, "--json").document
    asked, learnt = "".join(s["text"] for s in row["segments"] if not s["learnt"]), row["segments"][1]
    assert row["where"].endswith("train.jsonl:1") and 0 < row["learnt"] < row["tokens"]
    assert "user" in asked and learnt["learnt"] and learnt["text"].startswith('{"name"')


def test_data_check_gives_the_gates_record_when_it_stays_shut_too(call, recipe):
    opened = call("data", "check", recipe, "--json")
    assert opened.code == 0 and opened.document["rows"] == 20 and "error" not in opened.document
    shut = call("data", "check", recipe, "train.max_length=20", "data.too_long=error", "--json")
    assert shut.code == shut.document["error"]["exit_code"] == 3
    assert shut.document["too_long"] == shut.document["rows"] == 20


def test_a_plan_is_numbers(call, recipe):
    plan = call("train", recipe, "--dry-run", "--json").document
    assert plan["data"]["rows"] == 20 and isinstance(plan["data"]["supervised_share"], float)


def test_a_run_is_trained_scored_and_merged(call, recipe):
    trained = call("train", recipe, "--out", "run", "export.tolerance=1e-9", "--json")
    assert trained.code == 0 and trained.document["step"] == 4
    again = call("train", recipe, "--out", "run", "export.tolerance=1e-9", "--resume", "--json")
    assert "nothing to do" in again.err and again.document == trained.document
    refused = call("train", recipe, "--out", "run", "--json")
    assert refused.document["error"]["kind"] == "UsageError"

    scored = call("eval", "run", "--baseline", "--json")
    assert math.isfinite(scored.document["adapter"]["loss"]["loss"]) and "baseline" in scored.document

    missed = call("merge", "run", "--out", "model", "--onto", "original", "--json")
    assert missed.code == missed.document["error"]["exit_code"] == 6
    assert missed.document["kl_mean"] > missed.document["tolerance"] == 1e-9
    taken = call("merge", "run", "--out", "model", "--json")
    assert taken.code == 2 and "kl_mean" not in taken.document


def test_a_missed_table_has_its_record_beside_the_error(call, table_file):
    missed = call("reproduce", table_file, "--json")
    assert missed.code == missed.document["error"]["exit_code"] == 6
    (record,) = missed.document["results"]
    assert record["verdicts"] == {"missed": 1} and record["numbers"][0]["published"] == 1


def test_tables_before_one_that_fails_are_in_the_document(call, table_file, monkeypatch):
    from lrft.lab.tables import reproduce
    from lrft.registry.errors import DataError

    counted, seen = reproduce.load_table, []

    def second_fails(entry):
        seen.append(entry)
        if len(seen) == 2:
            raise DataError("the second table has no rows")
        return counted(entry)

    monkeypatch.setattr(reproduce, "load_table", second_fails)
    failed = call("reproduce", table_file, "fed_sb", "--json")
    assert failed.code == 3 and [one["name"] for one in failed.document["results"]] == ["mine"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_so_in_the_document(call, recipe, monkeypatch, number):
    after_step = GradientCheck.after_step

    def moved(self, run):
        after_step(self, run)
        if run.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(GradientCheck, "after_step", moved)
    done = call("train", recipe, "--out", "run", "--json")
    assert done.code == 128 + number == done.document["error"]["exit_code"]
    assert "--resume" in done.document["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_at_any_time_still_leaves_a_document(call, recipe, monkeypatch, number, signals):
    """One while data are read; or two within a step, of which the second does not wait for it."""

    def struck(*arguments, **settings):
        for _ in range(signals):
            os.kill(os.getpid(), number)
        stop.poll()
        raise AssertionError("the signal was not seen")

    if signals == 1:
        monkeypatch.setattr("lrft.api.training.begin.read_text", struck)
    else:
        monkeypatch.setattr(GradientCheck, "after_step", struck)
    before = signal.getsignal(number)
    done = call("train", recipe, "--out", "run", "--json")
    assert done.code == 128 + number == done.document["error"]["exit_code"]
    assert done.document["error"]["kind"] == "Interrupted"
    assert signal.getsignal(number) is before


def test_a_fault_of_ours_is_in_the_document_and_its_traceback_on_standard_error(call, recipe, monkeypatch):
    def broken(*arguments, **settings):
        raise ZeroDivisionError("division of rows by nothing")

    monkeypatch.setattr("lrft.api.training.begin.read_text", broken)
    done = call("train", recipe, "--json")
    assert done.code == 1
    assert done.document["error"]["kind"] == "ZeroDivisionError"
    assert done.document["error"]["message"] == "division of rows by nothing"
    assert done.err.rstrip().endswith("ZeroDivisionError: division of rows by nothing")


@pytest.mark.parametrize("stop", [SystemExit(9), EOFError("the archive ends early")], ids=["exit", "end"])
def test_a_library_that_ends_the_process_leaves_a_document(call, recipe, monkeypatch, stop):
    def ends(*arguments, **settings):
        raise stop

    monkeypatch.setattr("lrft.api.training.begin.read_text", ends)
    done = call("train", recipe, "--json")
    assert done.code == 1 and str(stop) in done.document["error"]["message"]


def test_what_libraries_and_children_print_goes_to_standard_error(call, monkeypatch):
    from lrft.recipe import library

    def noisy():
        print("from Python")
        os.write(1, b"from C\n")
        os.system("echo from a child")
        return ["one"]

    monkeypatch.setattr(library, "names", noisy)
    done = call("recipes", "ls", "--json")
    assert done.document == ["one"]
    assert {"from Python", "from C", "from a child"} <= set(done.err.splitlines())
    assert "from C" in call("recipes", "ls").out  # and is put back


@pytest.mark.parametrize("arguments", [["recipes", "ls"], ["recipes", "show", "nowhere"]], ids=words)
def test_processes_beside_the_first_print_no_result(call, monkeypatch, arguments):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert call(*arguments, "--json").out == call(*arguments).out == ""
    monkeypatch.setenv("RANK", "0")
    assert call(*arguments, "--json").document


def test_values_that_json_does_not_have_are_null_or_numbers():
    value = {
        "nan": math.nan,
        "inf": numpy.float32("inf"),
        "tensor": torch.tensor(2),
        "array": numpy.array([1.5, math.nan]),
        3: (numpy.int64(4), numpy.bool_(True)),
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "nan": None,
        "inf": None,
        "tensor": 2,
        "array": [1.5, None],
        "3": [4, True],
    }


def test_compare_prints_its_record(call, recipe, tmp_path, monkeypatch):
    """The trainings are stand-ins that leave what a training leaves."""
    lines = '{"step": 1, "loss": 1.0, "eval_loss": 1.0, "seconds": 1.0}\n'
    result = '{"trainable": 100, "seconds": 2.0, "peak_memory_bytes": 1048576, "loss": 1.0}'

    def command(recipe, folder):
        made = f"mkdir -p {folder}/adapter {folder}/checkpoints/step-1; echo '{{}}' > {folder}/run.json; "
        made += f"printf '%s' '{lines}' > {folder}/metrics.jsonl; echo '{result}' > {folder}/result.json"
        return ["sh", "-c", made]

    monkeypatch.setattr(runs, "training_command", command)
    (tmp_path / "b.yaml").write_text("extends: tiny.yaml\nadapter: {alpha: 8}\n")
    settings = ["--out", "compared", "--lr-grid", "1e-2", "--seeds", "1"]
    done = call("compare", recipe, "b.yaml", *settings, "--json")
    assert done.code == 0 and [arm["label"] for arm in done.document["arms"]] == ["tiny", "b"]
    assert done.document["arms"] == json.loads((tmp_path / "compared" / "report.json").read_text())["arms"]
    head, *arms = call("compare", recipe, "b.yaml", *settings, "-q").out.splitlines()
    assert head.startswith("arm") and [line.split()[0] for line in arms] == ["tiny", "b"]
