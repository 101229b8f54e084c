"""Model Stock: how far to go from the base towards the mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts, together
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Literal, MethodConfig
from lrft.registry.errors import UsageError

TINY = 1e-6  # of a product of norms: two changes of nothing are at a right angle


@COMBINATIONS.register
class ModelStock(Combination):
    """The mean of the changes, shrunk by how little they agree: what trainings do not share is left to the base.

        t = N cos / (1 + (N - 1) cos),  delta = t * mean_t delta_t

    with cos the mean over all pairs of the cosine between two parents' changes, of every layer, or of every row of it
    with `per: row`. Equal parents give t = 1, changes at right angles t = 0, the base itself. With `negative: zero` a
    negative t, of changes that point apart, is 0; `keep` leaves it, as mergekit does.

    Shapes: A (sum r_t, in), B (out, sum r_t), exact; t and cos one number a layer, or (out, 1).
    Takes: two or more of any kind and of one base, trained alike but for seed or order; no weights.
    Source: Jang et al., "Model Stock", ECCV 2024, arXiv 2403.19522; the cosine of more than two as in mergekit
    (arcee-ai/mergekit), whose code was read; the authors published none.
    Departures: it is applied to the changes that adapters make, and once, after training.
    """

    weighs = "none"

    config: Config

    class Config(MethodConfig):
        per: Literal["layer", "row"] = "layer"
        negative: Literal["keep", "zero"] = "keep"

    def __init__(self, config: Config, weights: Sequence[float], seed: int = 0) -> None:
        super().__init__(config, weights, seed)
        self.ratios: dict[str, float] = {}  # t by layer, of rows their mean

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        t = ratio(torch.stack([part.change() for part in parts]), self.config.per == "row", site)
        if self.config.negative == "zero":
            t = t.clamp(min=0)
        self.ratios[site] = float(t.mean())
        A, B = together(parts, [1 / len(parts)] * len(parts))
        return A, t * B

    def found(self) -> dict[str, float]:
        return dict(self.ratios)


def ratio(changes: Tensor, by_row: bool = False, site: str = "a layer") -> Tensor:
    """(N, out, in) -> t as (1, 1), or (out, 1) by row.

    Raises:
        UsageError: the changes point apart so far that t has no value.
    """
    flat = changes if by_row else changes.flatten(1)[:, None]
    norms = flat.norm(dim=-1)
    cosines = [
        ((flat[i] * flat[j]).sum(-1) / (norms[i] * norms[j]).clamp(min=TINY)).clamp(-1, 1)
        for i, j in combinations(range(len(changes)), 2)
    ]
    cos, count = torch.stack(cosines).mean(0), len(changes)
    below = 1 + (count - 1) * cos
    if bool((below < TINY).any()):
        raise UsageError(
            f"--method model_stock: the changes of {site} point in opposite directions, where t has no value; "
            "cat and ties combine them"
        )
    return (count * cos / below)[:, None]
