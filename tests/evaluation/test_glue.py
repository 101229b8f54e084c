"""GLUE: labels as numbers and names, metrics by hand, and the likeliest label by the model itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from lrft.data.sources import read_rows
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.tasks import glue
from lrft.evaluation.tasks.glue import f1, matthews
from lrft.registry.axes import TASKS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError

FORMAT = {"method": "columns", "prompt": "{sentence} ->", "completion": " {label}"}
PAIRS = {"method": "columns", "prompt": "{sentence1} / {sentence2} ->", "completion": " {label}"}
GOLD = [1, 1, 1, 0, 0, 0, 0, 1]
PICKS = [1, 1, 0, 1, 0, 0, 0, 0]  # TP 2, FP 1, FN 2, TN 3


def task(config):
    return TASKS.get("glue")(parse_choice(TASKS, {"method": "glue", **config}))


def rows(labels) -> list[dict]:
    return [{"sentence": f"sentence {k}", "label": label} for k, label in enumerate(labels)]


def test_metrics_by_hand():
    assert f1(PICKS, GOLD) == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert matthews(PICKS, GOLD) == pytest.approx((2 * 3 - 1 * 2) / (3 * 4 * 4 * 5) ** 0.5)
    assert matthews(GOLD, GOLD) == f1(GOLD, GOLD) == 1
    assert matthews([1 - g for g in GOLD], GOLD) == -1
    assert matthews([0] * 8, GOLD) == f1([0] * 8, GOLD) == 0


@pytest.mark.parametrize(
    ("subset", "metrics"),
    [
        ("cola", {"accuracy", "mcc"}),
        ("mrpc", {"accuracy", "f1"}),
        ("qqp", {"accuracy", "f1"}),
        ("sst2", {"accuracy"}),
    ],
)
def test_each_task_has_its_metrics(make_subject, monkeypatch, subset, metrics):
    monkeypatch.setattr(
        glue, "continuation_logprobs", lambda *given: [(float(w == p), 1) for p in PICKS for w in (0, 1)]
    )
    found = task({"subset": subset}).run(make_subject(rows=rows(map(str, GOLD)), format=FORMAT), None)
    assert {name for name in found.metrics if not name.endswith("_stderr")} == metrics
    assert found.metrics["accuracy"] == 5 / 8
    assert found.metrics.get("mcc", matthews(PICKS, GOLD)) == matthews(PICKS, GOLD)
    assert found.metrics.get("f1", 4 / 7) == pytest.approx(4 / 7)
    assert (found.n, found.version, found.settings["subset"]) == (8, "glue-labels-1", subset)


@pytest.mark.parametrize("render", ["plain", "chat"])
def test_the_label_is_the_likeliest_answer(make_subject, render):
    subject = make_subject(rows=rows([0, 1, 1, 0, 1]), format={**FORMAT, "render": render})
    found = task({"subset": "sst2", "words": ["bad", "very good"]}).run(subject, None)
    for sample, row in zip(found.samples, subject.rows, strict=True):
        totals = []
        for word in ("bad", "very good"):
            asked = subject.renderer.question({**row, "label": word})
            assert subject.tokenizer.decode(asked.answer).strip() == word
            totals.append(continuation_logprobs(subject, [asked.prompt], [asked.answer])[0][0])
        assert list(sample["label_logprobs"].values()) == pytest.approx(totals, abs=1e-3)
        assert sample["output"] == str(int(totals[1] > totals[0]))
        assert sample["correct"] == (sample["output"] == str(row["label"]))


def test_labels_are_asked_as_the_rows_write_them(make_subject):
    one = task({"subset": "rte"})
    named, numbered = {"label": "not_entailment"}, {"label": 1}
    assert [row["label"] for row in one.candidates(named)] == ["entailment", "not_entailment"]
    assert [row["label"] for row in one.candidates(numbered)] == ["0", "1"]
    assert one.gold(named) == one.gold(numbered) == one.gold({"label": " 1 "}) == 1
    assert task({"subset": "mnli"}).gold({"label": "contradiction"}) == 2


@pytest.mark.parametrize("label", ["-1", "2", "good", None])
def test_a_row_without_a_label_is_refused_by_line(make_subject, label):
    subject = make_subject(rows=rows(["0", label]), format=FORMAT)
    with pytest.raises(DataError, match=r"^made\.jsonl:2: column 'label' holds .* a label of sst2 is 0 or 1"):
        task({"subset": "sst2"}).run(subject, None)


@pytest.mark.parametrize(
    "format",
    [
        {"method": "columns", "prompt": "{sentence}", "completion": " {sentence}"},
        {"method": "columns", "prompt": "{sentence} {label}", "completion": " {label}"},
    ],
)
def test_a_format_that_hides_the_label_or_tells_it_in_the_prompt_is_refused(make_subject, format):
    with pytest.raises(
        DataError, match=r"^made\.jsonl:1: the label stands in column 'label', which the columns"
    ):
        task({"subset": "sst2"}).run(make_subject(rows=rows(["0"]), format=format), None)


@pytest.mark.parametrize("words", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_words_are_one_a_label(words):
    with pytest.raises(ValidationError, match="words of sst2 are 2, all different"):
        task({"subset": "sst2", "words": words})


@pytest.mark.parametrize(
    ("name", "subset", "format", "count"), [("SST-2", "sst2", FORMAT, 872), ("RTE", "rte", PAIRS, 277)]
)
def test_every_row_of_the_sets_at_hand_has_a_label_that_is_asked(make_subject, name, subset, format, count):
    folder = os.environ.get("LRFT_DATA")
    if folder is None:
        pytest.skip("set LRFT_DATA to a folder that holds glue/*_dev.tsv")
    found = read_rows(Source(source=str(Path(folder) / "glue" / f"{name}_dev.tsv")), "eval")
    one = task({"subset": subset})
    assert len(found) == count
    assert {one.gold(row) for row in found} == {0, 1}
    renderer = make_subject(format=format).renderer
    for row in found:
        asked = [renderer.question(candidate) for candidate in one.candidates(row)]
        assert asked[0].prompt == asked[1].prompt and asked[0].answer != asked[1].answer
        assert asked[one.gold(row)].reference == f" {row['label']}"
