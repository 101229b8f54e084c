"""`betr`: ranks counted by hand, and what no similarity but their order changes."""

from __future__ import annotations

import math

import torch

from lrft.core.data_selection import Measured
from lrft.registry.axes import DATA_SELECTIONS

DRAW = torch.Generator().manual_seed(0)
POOL, TARGET = torch.randn(30, 4, generator=DRAW), torch.randn(6, 4, generator=DRAW)


def scores(pool=POOL, target=TARGET, **settings):
    method = DATA_SELECTIONS.get("betr")(DATA_SELECTIONS.settings("betr", **settings))
    measured = Measured([1] * len(pool), pool), Measured([1] * len(target), target)
    return {one.row: one.score for one in method.choose(*measured, len(pool), 0).chosen}


def ranks():
    """Counted: how many rows are at least as near to each target row."""
    near = torch.nn.functional.cosine_similarity(TARGET[:, None].double(), POOL[None].double(), dim=2)
    return [[int((row >= row[j]).sum()) for j in range(len(POOL))] for row in near]


def test_a_score_is_the_best_or_the_mean_of_the_ranks():
    counted = ranks()
    for row, score in scores().items():
        assert abs(score - math.log2(1 / min(r[row] for r in counted))) < 1e-12
    for row, score in scores(over="mean").items():
        values = [math.log2(1 / r[row]) for r in counted]
        assert abs(score - sum(values) / len(values)) < 1e-12


def test_a_row_of_the_target_is_the_best_there_is_and_more_targets_only_raise_scores():
    pool = torch.cat([POOL, TARGET[:1]])
    assert scores(pool)[30] == 0
    fewer, more = scores(target=TARGET[:3]), scores()
    assert all(more[row] >= fewer[row] for row in fewer) and more != fewer


def test_lengths_of_embeddings_say_nothing():
    assert scores(POOL * torch.arange(1, 31)[:, None]) == scores()
