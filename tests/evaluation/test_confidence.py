"""Calibration errors and ranks by hand, by their definitions, and of a model that is asked one row at a time."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from lrft.data.replies import reply_tokens
from lrft.evaluation.tasks.confidence import Confidence, auroc, ece, measures
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError
from tests.each import each

FORMAT = {"method": "unpaired", "query": "Right? Answer:", "replies": ["a", "b"]}
ROWS = [
    {"prompt": f"{k} + {k} =", "completion": f" {2 * k + (k % 2)}", "label": k % 2 == 0} for k in range(7)
]


def drawn(n=400, seed=0):
    draw = random.Random(seed)
    confidence = [round(draw.random(), 2) for _ in range(n)]
    return confidence, [draw.random() < c for c in confidence]


def test_the_numbers_are_those_of_their_definitions():
    confidence, right = drawn(80)
    c, y = torch.tensor(confidence).double(), torch.tensor(right).double()
    edges, total = torch.linspace(0, 1, 11).double(), 0.0
    for low, high in pairwise(edges):
        inside = (c > low + 1e-9) & (c <= high + 1e-9) | (low == 0) & (c == 0)
        if inside.any():
            total += float(inside.double().mean() * (c[inside].mean() - y[inside].mean()).abs())
    assert ece(confidence, right) == pytest.approx(total)
    pairs = [
        (a > b) + (a == b) / 2 for a, i in zip(c, y, strict=True) for b, j in zip(c, y, strict=True) if i > j
    ]
    assert auroc(confidence, right) == pytest.approx(sum(map(float, pairs)) / len(pairs))
    found = measures(confidence, right)
    assert found["brier"] == pytest.approx(float(((c - y) ** 2).mean()))
    assert found["right"] == pytest.approx(float(y.mean()))


@each(("c", "share"), [(0.3, 0.5), (0.0, 0.2), (1.0, 0.9), (0.7, 0.7)])
def test_a_constant_is_off_by_its_distance_from_the_share_and_ranks_nothing(c, share):
    right = [k < 10 * share for k in range(10)]
    assert ece([c] * 10, right) == pytest.approx(abs(c - share))
    assert auroc([c] * 10, right) == 0.5


def test_a_temperature_moves_no_rank_and_one_kind_alone_has_none():
    confidence, right = drawn(seed=1)
    cooled = [1 / (1 + math.exp(-0.3 * math.log(c / (1 - c)))) if 0 < c < 1 else c for c in confidence]
    assert auroc(cooled, right) == pytest.approx(auroc(confidence, right))
    assert auroc([0.2, 0.4], [True, True]) is None and "auroc" not in measures([0.2, 0.4], [True, True])


def test_every_row_has_the_confidence_that_it_has_alone(make_subject):
    subject = make_subject(rows=ROWS, format=FORMAT, batch_tokens=64, attention="sdpa")
    result = Confidence(parse_choice(TASKS, "confidence")).run(subject, None)
    no, yes = reply_tokens(subject.renderer, ROWS[0])
    expected = []
    for row in ROWS:
        reply = subject.renderer.encode(row).documents()[1]
        end = next(k for k, learnt in enumerate(reply.supervised) if learnt)
        with torch.no_grad():
            z = subject.hf(input_ids=torch.tensor([reply.input_ids[:end]]), use_cache=False).logits[0, -1]
        expected.append(float(z[[no, yes]].double().softmax(-1)[1]))
    assert [one["output"] for one in result.samples] == pytest.approx(expected, abs=1e-5)
    assert [one["reference"] for one in result.samples] == [row["label"] for row in ROWS]
    assert result.metrics["ece"] == pytest.approx(ece(expected, [row["label"] for row in ROWS]), abs=1e-5)
    assert result.n == 7 and result.settings["replies"] == [no, yes]


def test_rows_that_ask_nothing_are_refused(make_subject):
    for given, said in (("prompt_completion", "do not say whether"), ("unpaired", r"data\.format\.query")):
        with pytest.raises(DataError, match=said):
            Confidence(parse_choice(TASKS, "confidence")).run(make_subject(rows=ROWS, format=given), None)
