"""What an evaluation leaves behind: files, table, and the baseline beside the adapter."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from lrft.api.asking.evaluate import evaluate
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.scoring import subject
from lrft.core.adapted import adapters_off
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.report import NotReported, table, write_report
from lrft.evaluation.run import evaluate_tasks
from lrft.evaluation.subject import EvaluationStopped
from lrft.evaluation.tasks._task import TaskResult
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder

SAMPLES = [{"prompt": f"p{i}", "output": "ü", "reference": "r", "correct": False} for i in range(60)]
RESULTS = {
    "gsm8k": TaskResult(
        {"exact_match": 0.5, "exact_match_stderr": math.nan}, 1, SAMPLES, "rule-1", {"limit": 1}
    ),
    "loss": TaskResult({"loss": 2.0, "perplexity": math.inf, "tokens": 9}, 4, version="loss-1"),
}
ROWS = [{"prompt": f"Say {word}: ", "completion": word} for word in "abcdef"]


def test_the_report_holds_metrics_versions_and_settings(tmp_path):
    path = write_report(tmp_path, "adapter", RESULTS, {"dtype": "float32"})
    assert path == tmp_path / "eval" / "adapter.json"
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found["subject"] == {"dtype": "float32"}
    assert found["tasks"]["gsm8k"] == {
        "version": "rule-1",
        "n": 1,
        "metrics": {"exact_match": 0.5, "exact_match_stderr": None},
        "settings": {"limit": 1},
    }
    assert found["tasks"]["loss"]["metrics"] == {"loss": 2.0, "perplexity": None, "tokens": 9}


def test_the_first_fifty_samples_of_a_task_are_written_line_by_line(tmp_path):
    write_report(tmp_path, "baseline", RESULTS, {})
    lines = (tmp_path / "eval" / "baseline-samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"task": "gsm8k", **sample} for sample in SAMPLES[:50]]
    write_report(tmp_path, "quiet", {"loss": RESULTS["loss"]}, {})
    assert sorted(entry.name for entry in (tmp_path / "eval").iterdir()) == [
        "baseline-samples.jsonl",
        "baseline.json",
        "quiet.json",
    ]


def test_a_failing_write_leaves_the_previous_report_and_no_litter(tmp_path, monkeypatch):
    path = write_report(tmp_path, "adapter", RESULTS, {})
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotReported, match=r"loss|adapter\.json: could not be written \(No space left"):
        write_report(tmp_path, "adapter", {"loss": RESULTS["loss"]}, {})
    assert path.read_bytes() == before
    assert len(list((tmp_path / "eval").iterdir())) == 2


def shown(results) -> str:
    printed = io.StringIO()
    Console(file=printed, width=120, color_system=None).print(table(results))
    return printed.getvalue()


def test_the_table_has_a_column_for_the_baseline_only_when_there_is_one():
    better = {"gsm8k": TaskResult({"exact_match": 0.75, "exact_match_stderr": 0.0433}, 101)}
    text = shown({"adapter": better, "baseline": {"gsm8k": RESULTS["gsm8k"]}})
    assert [word in text for word in ("baseline", "0.7500 ± 0.0433", "0.5000", "gsm8k (n=101)")] == [True] * 4
    assert "stderr" not in text and "nan" not in text
    assert "baseline" not in shown({"adapter": better})


def test_evaluate_runs_every_task_and_writes_one_report(make_subject, tmp_path):
    subject = make_subject(rows=ROWS)
    tasks = [
        parse_choice(TASKS, task) for task in ("loss", {"method": "exact_match", "max_new_tokens": 3}, "loss")
    ]
    found = evaluate_tasks(subject, tasks, 4, tmp_path, "adapter")
    assert list(found) == ["loss", "exact_match", "loss-2"]
    assert [result.n for result in found.values()] == [4, 4, 4]
    record = json.loads((tmp_path / "eval" / "adapter.json").read_text())
    assert record["tasks"]["loss"]["metrics"] == found["loss"].metrics
    assert record["tasks"]["exact_match"]["settings"]["rows"] == "made.jsonl"
    assert record["subject"]["dtype"] == "float32"
    lines = (tmp_path / "eval" / "adapter-samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference"] for line in lines] == list("abcd")


def test_without_adapters_the_same_call_scores_the_base(make_subject, adapt, tmp_path):
    subject, bare = make_subject(rows=ROWS), make_subject(rows=ROWS)
    adapt(subject, "none")
    tasks = [parse_choice(TASKS, "loss")]
    base = evaluate_tasks(bare, tasks, None, None, "adapter")["loss"].metrics["loss"]
    adapter = evaluate_tasks(subject, tasks, None, tmp_path, "adapter")["loss"].metrics["loss"]
    with adapters_off(subject.model):
        baseline = evaluate_tasks(subject, tasks, None, tmp_path, "baseline")["loss"].metrics["loss"]
    assert baseline == pytest.approx(base, rel=1e-6)
    assert adapter != pytest.approx(base, rel=1e-3)
    facts = {
        label: json.loads((tmp_path / "eval" / f"{label}.json").read_text())
        for label in ("adapter", "baseline")
    }
    assert facts["adapter"]["subject"]["adapters_enabled"] == facts["adapter"]["subject"]["adapters"] > 0
    assert facts["baseline"]["subject"]["adapters_enabled"] == 0


def test_a_stopped_evaluation_writes_nothing(make_subject, tmp_path):
    subject = make_subject(rows=ROWS, should_stop=lambda: True)
    for task in ("loss", "exact_match"):
        with pytest.raises(EvaluationStopped):
            evaluate_tasks(subject, [parse_choice(TASKS, task)], None, tmp_path, "adapter")
    assert not (tmp_path / "eval").exists()


def shown_progress(monkeypatch, *, terminal: bool) -> list[str]:
    """What two tasks of four rows show, a row taking 20 seconds."""
    shown, done = io.StringIO(), 0
    console = Console(file=shown, force_terminal=terminal, width=100, color_system=None)
    clock = SimpleNamespace(monotonic=lambda: 20.0 * done)
    monkeypatch.setattr("lrft.evaluation.progress.time", clock)
    with EvaluationBar(console) as bar:
        for what in ("gsm8k", "loss"):
            for done in range(5):
                bar(what, done, 4)
    return shown.getvalue().splitlines()


def test_without_a_terminal_progress_is_plain_lines_with_rate_and_time_left(monkeypatch):
    lines = shown_progress(monkeypatch, terminal=False)
    assert lines[:4] == [
        "gsm8k 1/4  0.05 rows/s, 60 s left",
        "gsm8k 2/4  0.05 rows/s, 40 s left",
        "gsm8k 3/4  0.05 rows/s, 20 s left",
        "gsm8k 4/4  0.05 rows/s",
    ]
    assert len(lines) == 8


def test_on_a_terminal_each_task_has_a_bar(monkeypatch):
    text = "".join(shown_progress(monkeypatch, terminal=True))
    assert all(word in text for word in ("gsm8k", "loss", "4/4"))


def test_every_task_is_declared_without_importing_it():
    for name in TASKS.names():
        declared, task = TASKS.declared(name), TASKS.get(name)
        assert declared.config.model_json_schema()["properties"].keys() == task.Config.model_fields.keys()
        assert declared.doc.splitlines()[0] == task.__doc__.strip().splitlines()[0]
        assert f"`{task.version}`" in task.__doc__, "the docstring states the rule that the version names"


REQUIRED = {"glue": {"subset": "sst2"}}


@pytest.mark.parametrize("name", TASKS.names())
def test_a_tasks_section_survives_a_round_trip_with_its_own_format(name):
    given = {
        "method": name,
        "data": "rows.jsonl",
        "format": {"method": "columns", "prompt": "{q}", "completion": "{a}"},
        **REQUIRED.get(name, {}),
    }
    config = parse_choice(TASKS, given)
    again = parse_choice(TASKS, config.model_dump(mode="json"))
    assert again == config
    assert again.model_dump()["format"]["prompt"] == "{q}"
    with pytest.raises(ValueError, match="unknown format 'colums'; did you mean columns"):
        parse_choice(TASKS, {"method": name, "format": {"method": "colums"}})


@pytest.mark.parametrize("adapter", ["{method: lora, rank: 4, targets: [up_proj]}", "null"])
def test_the_baseline_has_none_of_the_base_weights_that_were_trained(tiny, tmp_path, adapter):
    path = Path(__file__).parents[2] / "recipes" / "smoke" / "lora.yaml"
    small = [f"model={{name: {tiny('qwen2')}, dtype: float32}}", f"adapter={adapter}", "quantization=none"]
    small += [
        "data.train.limit=12",
        "data.eval.limit=4",
        "optimizer.lr=0.05",
        "trainable=['*.bias', '*norm.weight']",
    ]
    small += ["train.device=cpu"]
    train(load_recipe(path, small), tmp_path / "run", resume=False)
    scored = evaluate(RunFolder(tmp_path / "run"), ["loss"], 4, True, None)
    recipe, text, _ = open_run(RunFolder(tmp_path / "run"))
    bare = subject(recipe, text, load_model(recipe.model))
    expected = evaluate_tasks(bare, [parse_choice(TASKS, "loss")], 4, None, "")["loss"].metrics["loss"]
    assert scored["baseline"]["loss"].metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(scored["adapter"]["loss"].metrics["loss"] - expected) > 1e-3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tasks": ["los"]}, "--task los: no such task; did you mean loss"),
        ({"tasks": ["loss"], "harness": ["piqa"]}, "--harness, --task: give one of them at a time"),
    ],
    ids=["no such task", "both"],
)
def test_what_no_run_could_be_asked_is_refused_before_one_is_opened(asked, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        evaluate(tmp_path / "no run", **asked)
