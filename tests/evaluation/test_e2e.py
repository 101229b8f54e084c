"""Overlap with several references: rows of one prompt are one prompt, and the libraries' numbers by hand."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lrft.data.sources import Rows
from lrft.evaluation.tasks.e2e import find_overlap, group
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import MissingExtra

ROWS = [
    {"prompt": "name : A ->", "completion": " A is a cheap place ."},
    {"prompt": "name : B ->", "completion": " B is by the river ."},
    {"prompt": "name : A ->", "completion": " There is a cheap place called A ."},
]
REFERENCES = [["A is a cheap place .", "There is a cheap place called A ."], ["B is by the river ."]]
OUTPUTS = ["A is a cheap place .", "B is far from the river ."]


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins that keep what they were given: BLEU is the number of outputs, ROUGE-L of an output its references."""
    given: dict[str, object] = {}

    class BLEU:
        def corpus_score(self, outputs, streams):
            given["streams"] = streams
            return type("Score", (), {"score": float(len(outputs))})

        def get_signature(self):
            return "fake|v:1"

    class RougeScorer:
        def __init__(self, kinds):
            assert kinds == ["rougeL"]

        def score_multi(self, targets, prediction):
            given.setdefault("scored", []).append((targets, prediction))
            return {"rougeL": type("Score", (), {"fmeasure": len(targets) / 4})}

    metrics, scorer = ModuleType("sacrebleu.metrics"), ModuleType("rouge_score.rouge_scorer")
    metrics.BLEU, scorer.RougeScorer = BLEU, RougeScorer
    for module in (ModuleType("sacrebleu"), metrics, ModuleType("rouge_score"), scorer):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


def score(make_subject, say, limit=None):
    subject = make_subject(rows=ROWS)
    say(subject, OUTPUTS, unstopped=(1,))
    return TASKS.get("e2e")(parse_choice(TASKS, "e2e")).run(subject, limit)


def test_rows_with_one_prompt_are_answered_once_against_all_their_references(make_subject, say, libraries):
    found = score(make_subject, say)
    assert libraries["scored"] == [(REFERENCES[0], OUTPUTS[0]), (REFERENCES[1], OUTPUTS[1])]
    assert libraries["streams"] == [[REFERENCES[0][0], REFERENCES[1][0]], [REFERENCES[0][1], None]]
    assert found.metrics["bleu"] == 2 and found.metrics["rouge_l"] == (2 / 4 + 1 / 4) / 2
    assert found.metrics["prompts"] == 2 and found.metrics["unstopped"] == 0.5
    assert (found.n, found.version, found.settings["bleu_signature"]) == (3, "e2e-overlap-1", "fake|v:1")
    assert [sample["correct"] for sample in found.samples] == [True, False]
    assert found.samples[0]["references"] == REFERENCES[0]
    assert score(make_subject, say, limit=2).samples[0]["references"] == REFERENCES[0][:1]


def test_without_the_libraries_the_install_line_comes_first(make_subject, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[overlap\]'"):
        score(make_subject, say)


def test_the_libraries_themselves_give_the_numbers_by_hand():
    pytest.importorskip("sacrebleu", reason="needs the extra `overlap`")
    pytest.importorskip("rouge_score", reason="needs the extra `overlap`")
    bleu, rouge, signature = find_overlap()(OUTPUTS, REFERENCES)
    # n-grams of both outputs that a reference has, of all: 6 + 5 of 6 + 7; 5 + 3 of 5 + 6; 4 + 1 of 4 + 5; 3 of 3 + 4.
    precisions = [11 / 13, 8 / 11, 5 / 9, 3 / 7]
    assert bleu == pytest.approx(100 * math.exp(sum(map(math.log, precisions)) / 4), abs=1e-6)
    # B is [far from] the river: 4 of 6 words of the output, without the stop, and 4 of 5 of the reference.
    assert rouge == pytest.approx([1, 2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)])
    assert "tok:13a" in signature


def test_a_prompt_is_told_by_the_place_of_its_first_row(make_subject):
    rows = Rows(
        [{"prompt": f"{name} ->", "completion": " it is"} for name in "aabbcc"], "f", "", [3, 4, 5, 6, 7, 8]
    )
    for given in (rows, rows.first(6), rows.chosen([0, 1, 2, 3, 4, 5])):
        firsts, _ = group(given, make_subject().renderer)
        assert [firsts.where(k) for k in range(len(firsts))] == ["f:3", "f:5", "f:7"]


def test_the_meanings_of_e2e_have_several_references(make_subject):
    folder = os.environ.get("LRFT_DATA")
    if folder is None:
        pytest.skip("set LRFT_DATA to a folder that holds nlg/e2e_valid.txt")
    lines = (Path(folder) / "nlg" / "e2e_valid.txt").read_text().splitlines()[:100]
    pairs = [line.split("||") for line in lines]
    rows = Rows([{"prompt": f"{meaning} ->", "completion": f" {said}"} for meaning, said in pairs], "e2e", "")
    firsts, references = group(rows, make_subject().renderer)
    assert (
        len(firsts) == len({meaning for meaning, _ in pairs}) < len(rows) == sum(map(len, references)) == 100
    )
    assert firsts[0]["prompt"].startswith(pairs[0][0]) and references[0][0] == pairs[0][1].strip()
