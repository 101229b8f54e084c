"""Tasks of lm-eval on the live model: what it is given, what becomes of its results, and what its own run says."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.core.adapted import adapters_off
from lrft.core.team import Team
from lrft.evaluation.harness import harness_results
from lrft.model.batching import stock_attention
from lrft.recipe.load import load_recipe
from lrft.registry.errors import LrftError, MissingExtra, UsageError
from tests.commands.conftest import DATA, RECIPE

IDS = torch.tensor([[5, 6, 7]])
FOUND = {
    "results": {
        "quiz": {"alias": "quiz", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25},
        "sums": {"alias": "sums", "exact_match,strict-match": 1.0, "exact_match_stderr,strict-match": "N/A"},
        "both": {"alias": "both", "acc,none": 0.75},
    },
    "versions": {"quiz": 2.0, "sums": 1.0},
    "n-shot": {"quiz": 0, "sums": 5},
    "configs": {"quiz": {"task": "quiz"}},
    "n-samples": {"quiz": {"original": 9, "effective": 4}, "sums": {"original": 3, "effective": 3}},
    "group_subtasks": {"both": ["quiz", "sums"]},
}


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for lm-eval that keeps what it was given and how the model then was."""
    given: dict[str, object] = {}

    class HFLM:
        def __init__(self, pretrained, tokenizer, batch_size):
            given.update(model=pretrained, tokenizer=tokenizer)
            self.batch_size = batch_size
            pretrained.tie_weights()

    class TaskManager:
        all_tasks = ("quiz", "sums")

        def __init__(self, include_defaults):
            given["include_defaults"] = include_defaults

        def match_tasks(self, names):
            return [name for name in names if name in self.all_tasks]

    def simple_evaluate(model, tasks, limit, task_manager, log_samples):
        hf = given["model"]
        given.update(
            tasks=tasks,
            limit=limit,
            rows=model.batch_size,
            training=hf.training,
            attention=hf.config._attn_implementation,
            stops=hf.generation_config.eos_token_id,
            logits=hf(input_ids=IDS).logits,
        )
        if "error" in given:
            raise given["error"]
        return FOUND

    package, models, tasks = (
        ModuleType("lm_eval"),
        ModuleType("lm_eval.models.huggingface"),
        ModuleType("lm_eval.tasks"),
    )
    package.__version__, package.simple_evaluate = "0.0", simple_evaluate
    models.HFLM, tasks.TaskManager = HFLM, TaskManager
    for module in (package, ModuleType("lm_eval.models"), models, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


def test_the_live_model_is_scored_as_its_merged_folder_would_be(make_subject, fake, monkeypatch):
    subject = make_subject(attention="segmented")
    hf, settings = subject.hf, subject.hf.generation_config
    monkeypatch.setattr(type(hf), "tie_weights", lambda *given, **named: pytest.fail("tied anew"))
    subject.model.train()
    harness_results(subject, ["quiz", "my.yaml"][:1], 4)
    assert fake["model"] is hf and fake["tokenizer"] is not subject.tokenizer
    assert (fake["tasks"], fake["limit"], fake["rows"]) == (["quiz"], 4, 8)
    assert (fake["training"], fake["attention"], fake["include_defaults"]) == (False, "sdpa", True)
    stops = fake["stops"] if isinstance(fake["stops"], list) else [fake["stops"]]
    assert set(stops) == subject.stop_ids
    assert hf.config._attn_implementation == "segmented" and hf.generation_config is settings and hf.training
    assert "tie_weights" not in hf.__dict__


def test_results_keep_their_filters_errors_versions_and_counts(make_subject, fake):
    found = harness_results(make_subject(), ["quiz", "sums"], None)
    assert found["quiz"].metrics == {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.25}
    assert found["sums"].metrics == {"exact_match (strict-match)": 1.0}
    assert found["quiz"].version == "lm-eval 0.0, quiz 2.0"
    assert [found[name].n for name in ("quiz", "sums", "both")] == [4, 3, 7]
    assert found["quiz"].settings == {
        "harness": "lm-eval 0.0", "config": {"task": "quiz"}, "n_shot": 0, "batch_rows": 8
    }  # fmt: skip


def test_a_model_that_padding_disturbs_is_scored_row_by_row(make_subject, fake):
    harness_results(make_subject("rwkv"), ["quiz"], None)
    assert fake["rows"] == 1


def test_a_failure_of_the_library_is_one_sentence(make_subject, fake):
    fake["error"] = ConnectionError("no network\nmore")
    with pytest.raises(LrftError, match=r"^--harness quiz: lm-eval failed \(no network\)$"):
        harness_results(make_subject(), ["quiz"], None)


@pytest.mark.parametrize(
    ("task", "message"),
    [("quizz", "lm-eval has no such task; did you mean quiz"), ("mine.yaml", "mine.yaml: no such file")],
)
def test_a_task_that_is_not_there_is_refused(make_subject, fake, task, message):
    with pytest.raises(UsageError, match=message):
        harness_results(make_subject(), [task], None)


def test_what_the_library_cannot_do_is_refused(make_subject, monkeypatch):
    subject = make_subject()
    subject.team = Team(0, 2)
    with pytest.raises(UsageError, match="without a launcher"):
        harness_results(subject, ["quiz"], None)
    subject = make_subject()
    monkeypatch.setattr(type(subject.model), "virtual_now", 3)
    with pytest.raises(UsageError, match="virtual tokens"):
        harness_results(subject, ["quiz"], None)


def test_without_the_library_the_error_holds_the_install_line(make_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[eval\]'"):
        harness_results(make_subject(), ["quiz"], None)


def test_adapters_are_at_work_while_the_library_scores(dense_subject, fake):
    harness_results(dense_subject, ["quiz"], None)
    hf = dense_subject.hf
    with torch.no_grad(), stock_attention(hf):
        on = hf(input_ids=IDS).logits
        with adapters_off(hf):
            off = hf(input_ids=IDS).logits
    assert torch.equal(fake["logits"], on) and not torch.allclose(on, off, atol=1e-3)


QUIZ = """
task: quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: ["{{{{completion}}}}", "{{{{prompt}}}}", "42"]
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}, {{metric: bleu}}]
"""


COMPARED = {"quiz": ("acc", "acc_norm"), "written": ("exact_match", "bleu"), "rolling": ("word_perplexity",)}
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}} {{{{completion}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.mark.slow
def test_scores_are_those_of_the_library_on_the_merged_folder(tiny, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny(), data=DATA))
    train(load_recipe(path, ["optimizer.lr=0.1"]), tmp_path / "run", resume=False)
    files = []
    for name, text in (("quiz", QUIZ), ("written", WRITTEN), ("rolling", ROLLING)):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(text.format(rows=DATA / "test.jsonl"))
    found = evaluate(tmp_path / "run", limit=24, harness=[str(file) for file in files])["adapter"]
    merge(tmp_path / "run", tmp_path / "model")
    command = [
        *(
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--device",
            "cpu",
            "--batch_size",
            "8",
            "--limit",
            "24",
        ),
        *("--model_args", f"pretrained={tmp_path / 'model'},dtype=float32"),
        *("--tasks", ",".join(map(str, files)), "--output_path", str(tmp_path / "theirs")),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(written.read_text())["results"]
    assert found.keys() == theirs.keys() == COMPARED.keys()
    for task, result in found.items():
        assert result.n == 24
        for name in COMPARED[task]:
            assert result.metrics[name] == pytest.approx(theirs[task][f"{name},none"], rel=1e-4), (task, name)
    kept = json.loads((tmp_path / "run" / "eval" / "harness-adapter.json").read_text())
    assert kept["tasks"]["quiz"]["metrics"]["acc"] == found["quiz"].metrics["acc"]
