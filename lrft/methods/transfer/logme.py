"""What a model that was trained on the source already tells of the target's answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrft.core.transfer import TransferEstimate
from lrft.registry.axes import TRANSFER_ESTIMATES
from lrft.registry.errors import DataError

ROUNDS = 1000
STILL = 1e-6  # relative change of the ratio at which the iterations end
TINY = 1e-5  # theirs, beside both sums of squares
SMALL = 1e-12  # of the largest s^2: what float64 leaves of one that is 0


@TRANSFER_ESTIMATES.register
class LogME(TransferEstimate):
    """The logarithm of maximum evidence: how well a linear map of frozen states can explain the answers.

        y_c ~ N(0, I / beta + F F^T / alpha)
        score = 1/C sum over c of max over alpha, beta of 1/N log p(y_c | F)

    with F (N, d) the states of N rows, y_c (N) one where the answer is class c and 0 elsewhere, for C classes. The maps
    are integrated out, so more features than rows are no advantage in themselves. By the singular values s of F and
    x = U^T y, the fixed point of MacKay's updates with t = alpha / beta:

        gamma = sum s^2 / (s^2 + t)
        alpha = gamma / (sum s^2 x^2 / (t + s^2)^2),  beta = (N - gamma) / |y - F m|^2

    Needs: the last hidden state of every question of the target, at the token that its answer follows, by the model
    that was trained on the source; and which of a few answers each has.
    Score: nats a row; the source with the highest first. The base without a source is scored beside them.
    Source: You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", 2021, arXiv
    2102.11005, and the fixed point of You et al., "Ranking and Tuning Pre-trained Models", 2022, arXiv 2110.10545;
    thuml/LogME. For NLP: Bassignana et al., "Evidence > Intuition", 2022, arXiv 2210.11255; on adapters of intermediate
    tasks: Schulte et al., "Less is More", 2024, arXiv 2410.15148.
    Departures: theirs stop after 11 rounds or at a change of 0.1 %, here at one of 1e-6, the best of three starts; with
    more features than rows their determinant leaves out the directions beyond the rank, which here is the exact one;
    their 1e-5 beside |m|^2 is in the units of the states here, without which large ones lose up to nats a row.
    Advice: a source below the base by more than its interval is no reason to train on it first.
    """

    need = "states"
    looks_at = "answers"

    def of_answers(self, features: Tensor, classes: Tensor) -> float:
        states = features.double()
        names = classes.unique()
        if len(names) < 2:
            raise DataError(
                "--method: the rows have one answer all of them, so there is nothing to tell apart"
            )
        u, s, _ = torch.linalg.svd(states, full_matrices=False)
        found = [evidence(u, s, (classes == one).double(), states.shape[1]) for one in names]
        return sum(found) / len(found)


def evidence(u: Tensor, s: Tensor, y: Tensor, width: int) -> float:
    """The maximum of log p(y | F) / N, for F = u diag(s) v^T with `width` columns, u (N, k), s (k), y (N)."""
    n, square, x2 = len(y), s * s, (u.T @ y) ** 2
    rest = float((y @ y - x2.sum()).clamp_min(0))  # what lies outside of the columns of F
    there = square[square > SMALL * square.max()]
    starts = (float(found) for found in (there.min(), there.median(), there.max()))
    return max(_climb(n, width, start, square, x2, rest) for start in starts) / n


def _climb(n: int, width: int, ratio: float, square: Tensor, x2: Tensor, rest: float) -> float:
    """The evidence where the updates of alpha / beta end that begin with `ratio`."""
    tiny, value = TINY / float(square.mean()), -math.inf  # of the units of its sum, which those of F are in
    for _ in range(ROUNDS):
        gamma = float((square / (square + ratio)).sum())
        weights = float((square * x2 / (ratio + square) ** 2).sum())
        errors = float((x2 / (1 + square / ratio) ** 2).sum()) + rest
        alpha, beta = gamma / (weights + tiny), (n - gamma) / (errors + TINY)
        value = _log_evidence(n, width, alpha, beta, square, weights, errors)
        before, ratio = ratio, alpha / beta
        if abs(ratio - before) <= STILL * before:
            break
    return value


def _log_evidence(
    n: int, width: int, alpha: float, beta: float, square: Tensor, weights: float, errors: float
) -> float:
    a, b = torch.tensor([alpha, beta], dtype=torch.float64)
    # Columns beyond the rank of F add log(alpha) each to the determinant, which the first term takes back.
    determinant = torch.log(a + b * square).sum() + (width - len(square)) * a.log()
    normal = n * torch.log(torch.tensor(2 * torch.pi))
    return float((width * a.log() + n * b.log() - determinant - b * errors - a * weights - normal) / 2)
