"""Base models beside each other, nothing trained: scores are those of each alone, and what cannot be ranked is told."""

import json

import pytest

from lrft.evaluation.tasks._task import TaskResult
from lrft.lab.compare.bases import _ranked, compare_bases
from lrft.registry.axes import TASKS
from lrft.registry.errors import UsageError


def result(right: list[bool], **metrics: float) -> TaskResult:
    return TaskResult(metrics, len(right), [{"correct": one} for one in right])


def test_the_best_is_by_the_tasks_own_direction_and_row_by_row():
    found = {
        "a": {
            "exact_match": result([True, False, False, True], exact_match=0.5),
            "loss": result([], loss=2.0),
        },
        "b": {
            "exact_match": result([True, True, True, False], exact_match=0.75),
            "loss": result([], loss=1.0),
        },
    }
    alike = _ranked(found, True)
    assert alike["best"]["exact_match.exact_match"] == {
        "base": "b",
        "value": 0.75,
        "better": "higher",
        "against": {"a": {"best_alone": 2, "other_alone": 1, "mcnemar_p": 1.0}},
    }
    assert alike["best"]["loss.loss"]["base"] == "b" and not alike["best"]["loss.loss"]["against"]
    apart = _ranked(found, False)
    assert "loss.loss" not in apart["best"] and apart["not_ranked"][0].startswith(
        "loss.loss: it is a mean over tokens"
    )


def test_rows_are_compared_under_the_score_that_they_are_right_by():
    """Of multiple choice each score has rows of its own; a score that is no share of rows has none."""

    def scored(label, words):
        samples = [
            {"correct": a, "right": {"acc_label": a, "acc": b}} for a, b in zip(label, words, strict=True)
        ]
        return {
            "multiple_choice": TaskResult({"acc_label": sum(label) / 3, "acc": sum(words) / 3}, 3, samples),
            "confidence": TaskResult(
                {"ece": 0.1 * sum(label), "accuracy": sum(words) / 3}, 3, [{"correct": one} for one in words]
            ),
        }

    found = {
        "a": scored([True, True, False], [False, False, False]),
        "b": scored([True, False, False], [True, True, False]),
    }
    best = _ranked(found, True)["best"]
    assert best["multiple_choice.acc_label"]["base"] == "a"
    assert best["multiple_choice.acc_label"]["against"]["b"]["best_alone"] == 1
    assert best["multiple_choice.acc"]["base"] == "b"
    assert best["multiple_choice.acc"]["against"] == {
        "a": {"best_alone": 2, "other_alone": 0, "mcnemar_p": 0.5}
    }
    assert best["confidence.ece"]["base"] == "b" and not best["confidence.ece"]["against"]
    assert best["confidence.accuracy"]["against"]["a"]["best_alone"] == 2


def test_the_rows_of_a_task_are_those_of_the_score_that_it_names():
    for name in TASKS.names():
        cls = TASKS.get(name)
        assert cls.right_is is None or cls.better[cls.right_is] == "higher", name


def test_two_bases_are_scored_on_one_recipe(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"prompt": f"{k}?", "completion": f"{k}"}) + "\n" for k in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "held.jsonl").write_text(rows.replace("?", "!"))
    (tmp_path / "mine.yaml").write_text(
        "model: {name: nobody/nothing, dtype: float32}\n"
        "data: {train: {source: rows.jsonl}, eval: {source: held.jsonl}, format: prompt_completion}\n"
        "train: {max_steps: 2, device: cpu}\neval: {tasks: [loss]}\n"
    )
    bases = [str(tiny()), str(tiny(tied=False))]
    found = compare_bases(["mine.yaml", "eval.limit=3"], bases, tmp_path / "out")
    assert list(found["scores"]) == bases
    first, second = (found["scores"][base]["loss"]["loss"] for base in bases)
    assert found["best"]["loss.loss"]["value"] == min(first, second) and first != second
    assert json.loads((tmp_path / "out" / "bases.json").read_text())["best"] == found["best"]
    for arguments, named, message in (
        (["mine.yaml"], bases[:1], "two base models or more"),
        (["mine.yaml"], bases[:1] * 2, "each once"),
        (["mine.yaml", "mine.yaml"], bases, "on one recipe, and 2 are named"),
    ):
        with pytest.raises(UsageError, match=message):
            compare_bases(arguments, named, tmp_path / "out")
