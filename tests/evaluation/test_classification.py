"""Scores of labels beside those of scikit-learn's definitions, written out, and of the rows they are taken on."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lrft.core.batch import Batch
from lrft.data.formats.classify import Classify
from lrft.data.sources import read_rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks.classification import Classification, macro_f1, pearson
from lrft.model.load import load_model
from lrft.model.score_head import give_score_head
from lrft.model.tokenizer import load_tokenizer, pad_id
from lrft.recipe.inside_sections import ScoreHead
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import FORMATS, TASKS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError, NumericalError

ROWS = [("a", 0), ("a long one of many words", 1), ("b c", 2), ("d", 0), ("e f g", 1)]


@pytest.fixture(scope="module")
def subject_of(tiny, tmp_path_factory):
    """`subject_of(labels, rows, max_length, too_long)` -> a model with a random score head, and held-out rows."""

    def get(labels, rows=ROWS, max_length=64, too_long="error"):
        section = ModelSection(name=str(tiny()), dtype="float32")
        model = load_model(section)
        give_score_head(model, ScoreHead(labels=labels), 3)
        path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        tokenizer, stops = load_tokenizer(section)
        form = Classify(parse_choice(FORMATS, "classify"))
        renderer = Renderer(tokenizer, form, stops, max_length, too_long, labels=tuple(labels))
        held_out = read_rows(Source(source=str(path)), "eval")
        return Subject(model, tokenizer, renderer, held_out, stops, pad_id(tokenizer, stops), 32)

    return get


def task():
    return Classification(parse_choice(TASKS, "classification"))


def alone(subject):
    """What the model gives each row by itself."""
    found = []
    for row in subject.rows:
        ids = torch.tensor([subject.renderer.encode(row).input_ids])
        last = torch.tensor([ids.shape[1] - 1])
        whole = Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), last, last)
        with torch.no_grad():
            found.append(subject.model.scores(whole)[0])
    return torch.stack(found)


def test_every_row_has_the_label_it_has_alone(subject_of):
    subject = subject_of(["x", "y", "z"])
    expected = alone(subject)
    result = task().run(subject, None)
    picks = expected.argmax(-1).tolist()
    gold = [label for _, label in ROWS]
    assert [row["output"] for row in result.samples] == ["xyz"[pick] for pick in picks]
    assert [row["reference"] for row in result.samples] == ["xyz"[label] for label in gold]
    for row, scores in zip(result.samples, expected, strict=True):
        torch.testing.assert_close(torch.tensor(list(row["scores"].values())), scores, atol=1e-6, rtol=1e-5)
    assert result.metrics["accuracy"] == sum(a == b for a, b in zip(picks, gold, strict=True)) / 5
    assert result.n == 5 and result.settings["labels"] == ["x", "y", "z"]
    assert task().run(subject, 2).n == 2


def test_a_number_has_its_squared_error_and_correlation(subject_of):
    subject = subject_of(["stars"])
    given, gold = alone(subject)[:, 0], torch.tensor([float(label) for _, label in ROWS])
    result = task().run(subject, None)
    assert result.metrics["mse"] == pytest.approx(float(((given - gold) ** 2).mean()), rel=1e-5)
    expected = float(torch.corrcoef(torch.stack((given, gold)))[0, 1])
    assert result.metrics["pearson"] == pytest.approx(expected, rel=1e-3)
    assert "accuracy" not in result.metrics and "correct" not in result.samples[0]


def test_rows_that_are_too_long_are_left_out_and_told(subject_of):
    subject = subject_of(["x", "y", "z"], max_length=4, too_long="drop")
    result = task().run(subject, None)
    assert (result.n, result.metrics["left_out"]) == (5 - result.metrics["left_out"], 5 - result.n)
    assert 0 < result.n < 5
    with pytest.raises(DataError, match="none of the 1 rows has a label to score"):
        task().run(subject_of(["x", "y"], [("a long one of many words", 1)], 2, "drop"), None)


def test_a_row_without_a_known_label_is_named(subject_of):
    with pytest.raises(DataError, match=r"rows.jsonl:2: the label is -1"):
        task().run(subject_of(["x", "y"], [("a", 1), ("b", -1)]), None)


def test_a_score_that_is_no_number_is_told(subject_of):
    subject = subject_of(["x", "y"], [("a", 1)])
    torch.nn.init.constant_(subject.model.hf.score.weight, math.inf)
    with pytest.raises(NumericalError, match=r"rows.jsonl:1: a score of the row is no finite number"):
        task().run(subject, None)


def test_macro_f1_is_the_mean_over_classes_that_occur():
    gold, given = [0, 0, 1, 1, 2], [0, 1, 1, 1, 3]
    # class 0: P 1, R 1/2; class 1: P 2/3, R 1; 2 and 3: none right
    assert macro_f1(given, gold) == pytest.approx((2 / 3 + 4 / 5 + 0 + 0) / 4)
    assert macro_f1([1, 1], [1, 1]) == 1


def test_a_constant_has_no_correlation():
    assert pearson([1.0, 1.0], [1.0, 2.0]) is None
    assert pearson([0.1] * 3, [1.0, 2.0, 4.0]) is None is pearson([1.0, 2.0, 4.0], [0.7] * 3)
    assert pearson([1.0, 2.0, 3.0], [6.0, 4.0, 2.0]) == pytest.approx(-1)
