"""Concatenation: the exact weighted sum."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts, together
from lrft.registry.axes import COMBINATIONS


@COMBINATIONS.register
class Concatenation(Combination):
    """Factors one below the other: exactly the weighted sum of the changes, at the sum of the ranks.

        delta = sum_t w_t delta_t = B A,  A = [w_1 A_1; ...; w_N A_N],  B = [B_1, ..., B_N]

    with delta_t = B_t A_t of parent t, its scale included, and w_t its weight, 1 / N where none is given.

    Shapes: A (sum r_t, in), B (out, sum r_t).
    Takes: two or more of any ranks; a change of no low rank by an SVD of full rank.
    Source: PEFT's `add_weighted_adapter(combination_type="cat")`, read in 0.21.2.
    Departures: none; where the scale stands, in A or in both factors, is no difference.
    """

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        return together(parts, self.weights)
