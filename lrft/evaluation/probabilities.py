"""How good the probabilities of a classification are: accuracy, calibration error, log-likelihood, Brier score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.evaluation.tasks._task import share

BINS = 15


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Sum over bins of equal width of |accuracy - mean confidence|, weighted by the share of rows; (n,), (n,) bool.

    A bin holds its upper edge and not its lower one, but for the first, which holds both (Guo et al., 2017).
    """
    place = (confidence.double() * bins).ceil().clamp(1, bins).long() - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, correct.double() - confidence.double())
    return float(gap.abs().sum()) / len(confidence)


def probability_scores(rows: Sequence[Tensor], gold: Sequence[int]) -> dict[str, float]:
    """Scores of a distribution (C,) a row, whose right class is `gold`.

    ece   = calibration error of the largest probability, in `BINS` bins
    nll   = mean of -ln p[gold]
    brier = mean of sum_c (p_c - [c = gold])^2, from 0 to 2
    """
    confidence = torch.stack([p.max() for p in rows])
    correct = torch.tensor([int(p.argmax()) == right for p, right in zip(rows, gold, strict=True)])
    nll = [-math.log(max(float(p[right]), math.ulp(0.0))) for p, right in zip(rows, gold, strict=True)]
    brier = [float(p.square().sum()) - 2 * float(p[right]) + 1 for p, right in zip(rows, gold, strict=True)]
    return {
        **share("acc", correct.tolist()),
        "ece": expected_calibration_error(confidence, correct),
        "nll": sum(nll) / len(rows),
        "brier": sum(brier) / len(rows),
    }
