"""A signal in any phase of any command: an exit code, one sentence, nothing half done, and the same end after it."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lrft.cli import main
from lrft.core import stop
from tests.reliability.random_signals import listens, started
from tests.reliability.struck import files_in, scratch_in, struck
from tests.training.unbroken import same

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: float32}}
quantization: nf4
adapter: {{method: lora, rank: 4}}
init: {{method: lora_ga, batches: 2}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: {data}/train.jsonl, limit: 20}}
  eval: {{source: {data}/test.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 4, batch_size: 2, max_length: 160, save_every: 3, eval_every: 2, device: cpu}}
eval: {{tasks: [loss, {{method: exact_match, max_new_tokens: 4}}], at_end: true}}
"""
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SLOW = pytest.mark.slow
WORDS = {INT: "interrupted (SIGINT): ", TERM: "terminated (SIGTERM): ", HUP: "hung up (SIGHUP): "}


class Case(NamedTuple):
    """A command, and the function that looks for the n-th time as the signal comes; `kept` is in the sentence."""

    command: str
    place: str
    nth: int = 1
    number: int = TERM
    kept: str = "nothing was written; the same command begins again"

    def __str__(self) -> str:
        return f"{self.command.replace(' ', '_')}-{self.place}-{self.nth}"


BEGINS, GOES_ON = "nothing was trained yet; the same command begins it", "; add --resume to go on"
TRAIN = [
    Case("train", "load_recipe", 1, INT),
    Case("train", "lines_of", 7, TERM, BEGINS),
    Case("train", "encode_each", 9, HUP, BEGINS),
    Case("train", "load_model", 1, INT, BEGINS),
    Case("train", "fingerprint", 5, TERM, BEGINS),
    Case("train", "pack", 3, HUP, BEGINS),
    Case("train", "calibrate", 2, INT, BEGINS),
    Case("train", "attach", 6, TERM, BEGINS),
    Case("train", "asked_to_stop", 2, HUP, BEGINS),  # a row of every task is tried before the run begins
    Case("train", "step_loss", 2, INT, f"stopped after step 2 of 4, which is saved{GOES_ON}"),
    Case("train", "step_loss", 4, TERM, f"stopped after step 4 of 4, which is saved{GOES_ON}"),
    Case("train", "<lambda>", 2, HUP, f"stopped after step 4 of 4, which is saved{GOES_ON}"),
    Case("train", "asked_to_stop", 8, INT, "step 4 of 4 is saved, no task is scored yet; add --resume"),
    Case("train", "asked_to_stop", 10, TERM, "step 4 of 4 is saved, loss scored (in "),
]
SCORES = "nothing was scored yet; the same command scores all of it"
AGAIN = "is as it was; the same command"
OTHERS = [
    Case("eval", "lines_of", 1, INT, SCORES),
    Case("eval", "attach", 3, TERM, SCORES),
    Case("eval", "asked_to_stop", 1, HUP, "no task is scored yet; the same command scores all of it"),
    Case("eval", "asked_to_stop", 3, INT, "loss scored (in "),
    Case("merge", "fingerprint", 30, TERM, AGAIN),
    Case("merge", "merge_into", 4, INT, AGAIN),
    Case("merge", "write_classifier", 1, TERM, AGAIN),
    Case("merge", "compare", 1, HUP, AGAIN),
    Case("merge", "check_stops", 1, INT, AGAIN),
    Case("export peft", "attach", 3, INT),
    Case("export lora", "pairs", 4, TERM, AGAIN),
    Case("export vllm", "pairs", 4, HUP, AGAIN),
    Case("export vllm", "compare", 1, INT, AGAIN),
    Case("export gguf", "write_file", 5, INT, AGAIN),
    Case("export gguf", "check_file", 5, HUP, AGAIN),
    Case("export gguf --merged", "merge_into", 5, TERM, AGAIN),
    Case("export ollama --merged", "write_file", 5, INT, AGAIN),
    Case("generate", "attach", 3, TERM, "no answer was written; the same command goes on"),
    Case("generate", "asked_to_stop", 2, INT, "no answer was written; the same command goes on"),
    Case("find-lr", "calibrate", 2, TERM, "nothing is kept of a test that was not finished"),
    Case("find-lr", "step_loss", 3, INT, "nothing is kept of a test that was not finished"),
    Case("plan", "load_recipe", 1, HUP),
    Case("plan", "plan_command", 1, INT),
    Case("train --dry-run", "encode_each", 3, INT),
    Case("data show", "lines_of", 2, TERM),
    Case("data check", "encode_each", 3, HUP),
    Case("data check", "compare", 3, INT),
    Case("data select", "measure_rows", 3, TERM, "what was measured is kept; the same command goes on"),
    Case("data rank", "measure_rows", 3, TERM, "what was measured is kept; the same command goes on"),
    Case(
        "data augment",
        "asked_to_stop",
        2,
        INT,
        "answers are in out/more.answers.jsonl; the same command goes on",
    ),
    Case("data augment --verify", "asked_to_stop", 2, INT, ".answers.jsonl; the same command goes on"),
    Case("report", "report", 1, TERM),
    Case("inspect", "_inspection", 4, HUP),
    Case("doctor", "lines_of", 2, INT),
    Case("reproduce", "count_table", 1, TERM, "is kept; the same command goes on"),
    Case("sweep", "weigh", 2, INT, "is kept; the same command goes on"),
    Case("search", "weigh", 2, INT, "is kept; the same command goes on"),
    Case("compare", "weigh", 1, HUP, "is kept; the same command goes on"),
]
QUICK = {
    "train-encode_each-9",
    "train-step_loss-4",
    "train-asked_to_stop-10",
}
COMMANDS = {
    "train": "train {recipe} --out out",
    "train --dry-run": "train {recipe} --dry-run",
    "eval": "eval run",
    "merge": "merge run --out out",
    **{f"export {form}": f"export run --for {form} --out out" for form in ("peft", "lora", "vllm", "gguf")},
    "export gguf --merged": "export run --for gguf --merged --out out",
    "export ollama --merged": "export run --for ollama --merged --out out",
    "generate": "generate run prompts.txt --out out/answers.jsonl --max-new-tokens 4",
    "find-lr": "find-lr {recipe} --steps 20",
    "plan": "plan {recipe}",
    "data show": "data show {recipe}",
    "data check": "data check {recipe}",
    "data select": "data select {recipe} eval.batch_tokens=200 --method perplexity --budget 3 --out out/few.jsonl",
    "data rank": "data rank {recipe} eval.batch_tokens=200 --method textemb --source {other} --out out/order.json",
    "data augment": "data augment {recipe} --prompt {ask} --out out/more.jsonl --max-new-tokens 4",
    "data augment --verify": (
        "data augment {recipe} --prompt {ask} --out out/more.jsonl --max-new-tokens 4 --into completion "
        "--verify {verify} --allow-code"
    ),
    "report": "report run --out report.html",
    "inspect": "inspect run",
    "doctor": "doctor run",
    "reproduce": "reproduce {table} --out out",
    "sweep": "sweep {recipe} train.seed=0,1 --out out",
    "search": "search {recipe} --space {space} --budget 2 --out out",
    "compare": "compare {recipe} {other} --match steps --out out",
}
TRAINS = {"sweep", "search", "compare"}  # for minutes: that the same command goes on has tests of its own


class Called(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd, monkeypatch) -> Callable[..., Called]:
    """The command line in this process: exit code and both streams."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "WANDB_SILENT"):
        monkeypatch.setenv(name, "1")  # put back after the test, whatever the command sets

    def run(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["lrft", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        sys.stdout.flush()
        return Called(left.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory) -> Path:
    """A folder with a recipe, a table, prompts and a finished run of the recipe, all with whole names."""
    from lrft.api.training.train import train

    folder = tmp_path_factory.mktemp("signals")
    (folder / "tiny.yaml").write_text(RECIPE.format(model=tiny(), data=DATA))
    (folder / "other.yaml").write_text("extends: tiny.yaml\ninit: default\n")
    (folder / "space.yaml").write_text("optimizer.lr: [1e-3, 1e-2, 1e-1]\n")
    (folder / "ask.txt").write_text("Say otherwise: {prompt}\n")
    (folder / "verify.txt").write_text("It printed {output}. Is that right?\n")
    (folder / "prompts.txt").write_text("Ship 5 brushes to Yuki.\nHello\n")
    (folder / "table.yaml").write_text(
        f"title: A table\npaper: Nobody, 2026.\nrecipe: {folder}/tiny.yaml\n"
        "columns: {trainable: {metric: trainable, provenance: C, tolerance: 1e9}}\n"
        "rows: [{label: LoRA r4, cells: {trainable: 1}}]\n"
    )
    train(folder / "tiny.yaml", folder / "run")
    return folder


@pytest.fixture
def words(given, tmp_path, monkeypatch) -> Callable[[str], list[str]]:
    """The command line of a command, in a folder of its own that holds what it takes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(given / "run", "run")
    shutil.copy(given / "prompts.txt", "prompts.txt")

    def write(command: str) -> list[str]:
        files = {"recipe": "tiny.yaml", "other": "other.yaml", "table": "table.yaml", "space": "space.yaml"}
        files |= {"ask": "ask.txt", "verify": "verify.txt"}
        line = COMMANDS[command].format(**{name: given / file for name, file in files.items()})
        return line.split()

    return write


def told(called: Called, number: int) -> str:
    """The one sentence of a command that was stopped."""
    assert called.code == 128 + number, called.err
    assert "Traceback" not in called.err and "Stopped" not in called.err
    (said,) = [line for line in called.err.splitlines() if line.startswith("error: ")]
    assert called.err.rstrip().endswith(said)
    return said.removeprefix(f"error: {WORDS[number]}")


def marked(cases: list[Case]) -> list:
    return [
        pytest.param(case, id=str(case), marks=() if str(case) in QUICK else pytest.mark.slow)
        for case in cases
    ]


@pytest.mark.parametrize("case", marked(TRAIN))
def test_a_training_stops_in_any_phase_and_ends_as_one_that_was_not(call, words, given, tmp_path, case):
    handlers = [signal.getsignal(number) for number in stop.SIGNALS]
    with struck(case.place, case.number, case.nth) as blow:
        stopped = call(*words("train"))
    assert blow.fell and case.kept in told(stopped, case.number)
    assert [signal.getsignal(number) for number in stop.SIGNALS] == handlers
    out = tmp_path / "out"
    assert scratch_in(tmp_path) == []
    begun = case.kept not in (BEGINS, stop.NOTHING)
    assert begun == out.exists()
    finished = "loss: loss" in stopped.out
    assert finished == ("loss scored" in case.kept)
    assert finished == (out / "eval" / "adapter-unfinished.json").is_file()
    again = call(*words("train"), *(["--resume"] if begun else []))
    assert again.code == 0, again.err
    same(out, given / "run")
    assert files_in(out / "eval") == files_in(given / "run" / "eval")
    assert result(out) == result(given / "run")


def result(run: Path) -> dict:
    """What result.json holds of the numbers."""
    found = json.loads((run / "result.json").read_text())
    return {key: value for key, value in found.items() if key not in ("name", "seconds", "peak_memory_bytes")}


@pytest.mark.parametrize("case", marked(OTHERS))
def test_a_command_stops_in_any_phase_and_then_does_what_it_would_have_done(call, words, tmp_path, case):
    before = files_in(tmp_path)
    with struck(case.place, case.number, case.nth) as blow:
        stopped = call(*words(case.command))
    assert blow.fell and case.kept in told(stopped, case.number)
    assert scratch_in(tmp_path) == []
    kept = {name for name in files_in(tmp_path) if name not in before}
    if case.command == "eval":
        assert ("loss" in stopped.out) == ("loss scored" in case.kept) == bool(kept)
    elif case.command == "generate":
        assert kept <= {"out/answers.jsonl", "out/answers.jsonl.about.json"}
    elif case.command.startswith("data "):
        names = {
            "data select": "few.losses",
            "data rank": "order.target.embeddings",
            "data augment": "more.answers",
        }
        names["data augment --verify"] = "more.1-program.answers"
        file = f"out/{names.get(case.command, 'none')}.jsonl"
        assert kept <= {file, f"{file}.about.json"}
    elif case.command == "search":  # what is asked for, and no arm
        assert kept <= {"out/asked.json", "out/arms.jsonl"} and not (tmp_path / "out/arms.jsonl").read_text()
    else:
        assert kept == set() and stopped.out == ""
    if case.command in TRAINS:
        return
    again = call(*words(case.command))
    assert again.code == 0, again.err
    made = files_in(tmp_path)
    for path in (tmp_path / "out", tmp_path / "report.html"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in made.keys() - before.keys():
        (tmp_path / name).unlink(missing_ok=True)
    assert call(*words(case.command)).code == 0
    whole = files_in(tmp_path)
    assert made.keys() == whole.keys()
    timed = {"out/table.json", "out/table.md"} if case.command == "reproduce" else set()
    assert [name for name in made if made[name] != whole[name] and name not in timed] == []


@pytest.mark.parametrize(
    "sync", [pytest.param(1, marks=SLOW), 4, *(pytest.param(n, marks=SLOW) for n in (9, 30))]
)
def test_a_save_is_not_cut_by_a_signal(call, words, given, tmp_path, monkeypatch, sync):
    """The signal comes between two files of a checkpoint, of the first one or of the last."""
    fsync, done = os.fsync, []

    def struck_at(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) == sync:
            os.kill(os.getpid(), TERM)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", struck_at)
        stopped = call(*words("train"))
    assert len(done) >= sync and "which is saved; add --resume to go on" in told(stopped, TERM)
    assert scratch_in(tmp_path) == []
    assert call(*words("train"), "--resume").code == 0
    same(tmp_path / "out", given / "run")


def test_what_is_finished_is_shown_though_a_signal_came(call, words, monkeypatch):
    """While a result is written, or printed, nothing is left to stop: it is the result of the whole command."""
    from lrft.evaluation import run as evaluation

    def late(*arguments):
        os.kill(os.getpid(), TERM)
        return write(*arguments)

    write = evaluation.write_report
    monkeypatch.setattr(evaluation, "write_report", late)
    done = call(*words("eval"))
    assert done.code == 0 and "exact_match" in done.out
    assert json.loads(Path("run/eval/adapter.json").read_text())["tasks"].keys() == {"loss", "exact_match"}


@pytest.mark.parametrize("number", [pytest.param(INT, marks=SLOW), TERM])
def test_a_piped_conversation_is_left_after_the_answer_that_was_begun(call, words, monkeypatch, number):
    words("doctor")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nWho are you?\n"))
    with struck("<lambda>", number, 2) as blow:
        done = call("chat", "run", "--max-new-tokens", "8")
    assert blow.fell and told(done, number) == "the conversation is over; /save keeps one"
    assert len(done.out.splitlines()) == 1  # what was answered until then


def test_the_tasks_that_were_scored_are_in_the_one_document(call, words):
    with struck("asked_to_stop", TERM, 3):
        done = call(*words("eval"), "--json")
    document = json.loads(done.out)
    assert document["error"]["exit_code"] == done.code == 143
    assert math.isfinite(document["adapter"]["loss"]["loss"]) and "exact_match" not in document["adapter"]
    kept = json.loads(Path("run/eval/adapter-unfinished.json").read_text())
    assert kept["tasks"].keys() == {"loss"}
    assert call(*words("eval")).code == 0 and not Path("run/eval/adapter-unfinished.json").exists()


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the system for the handlers")


@linux
@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_a_signal_while_the_command_line_is_imported_is_one_sentence(number, tmp_path):
    process = started(["methods", "ls", "--json"], tmp_path)
    while not listens(process):
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err == f"error: {WORDS[number]}{stop.NOTHING}\n"
    assert json.loads(out)["error"]["exit_code"] == 128 + number


@SLOW
def test_a_signal_in_the_final_evaluation_of_a_process_loses_no_score(given, tmp_path):
    tasks = "eval.tasks=[loss, {method: exact_match, max_new_tokens: 150}]"
    process = started(["train", str(given / "tiny.yaml"), "--out", "out", tasks], tmp_path)
    assert any(line.startswith("loss 4/4") for line in process.stderr), "the first task was scored"
    process.send_signal(TERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    said = "step 4 of 4 is saved, loss scored (in out/eval/adapter-unfinished.json), exact_match not; add --resume"
    assert said in err and out.startswith("loss: loss ")


@SLOW
def test_a_terminal_that_is_lost_does_not_cost_the_step(given, tmp_path):
    """Its window is closed: every line that is still told would be an error."""
    words = ["train", str(given / "tiny.yaml"), "train.max_steps=400", "--out", "out"]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.environ |= {"PYTHONPATH": str(DATA.parents[2]), "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "lrft", *words])
    shown = b""
    while b"step 2/400" not in shown:
        shown += os.read(terminal, 1024)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    steps = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert f"step-{len(lines)}" in steps and len(lines) < 400
