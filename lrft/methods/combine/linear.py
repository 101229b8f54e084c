"""Factors added up for themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts, check_equal_ranks
from lrft.registry.axes import COMBINATIONS


@COMBINATIONS.register
class LinearFactors(Combination):
    """Weighted sums of the factors, A and B apart: PEFT's default, which is not the sum of the changes.

        A = sum_t sign(w_t) sqrt(|w_t s_t|) A_t,  B = sum_t sqrt(|w_t s_t|) B_t

    with s_t the scale of parent t and w_t its weight, 1 / N where none is given. B A has cross terms B_i A_j beside the
    weighted changes, so two adapters that were not trained from one start lose both: with random factors the result is
    about as far from the sum as the sum is long. `cat` is the sum.

    Shapes: A (r, in), B (out, r), r that of every parent.
    Takes: two or more with factors of one rank at every layer that they share.
    Source: PEFT's `add_weighted_adapter(combination_type="linear")`, read in 0.21.2.
    Departures: none.
    Advice: for continued trainings of one start, between which factors may be averaged; `cat` or `svd` for others.
    """

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        there = check_equal_ranks(site, parts, "linear")
        A: Tensor | float = 0.0
        B: Tensor | float = 0.0
        for place in there:
            part, product = parts[place], self.weights[place] * parts[place].scale
            root = math.sqrt(abs(product))
            A, B = A + math.copysign(root, product) * part.A, B + root * part.B
        if not isinstance(A, Tensor) or not isinstance(B, Tensor):
            return torch.cat([part.A for part in parts]), torch.cat([part.B for part in parts], dim=1)
        return A, B
