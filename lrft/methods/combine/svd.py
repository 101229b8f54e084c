"""The weighted sum, cut to a rank."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts, together
from lrft.registry.axes import COMBINATIONS


@COMBINATIONS.register
class TruncatedSum(Combination):
    """The weighted sum of the changes, cut to the nearest of a rank by a singular value decomposition.

        delta = U_r S_r V_r^T,  U S V^T = sum_t w_t delta_t

    with delta_t the change of parent t, w_t its weight (1 / N where none is given), r `--rank`, by default the highest
    rank of a parent. Exact where r reaches the rank of the sum; what the cut loses is told for every layer.

    Shapes: A (r, in) = S^1/2 V^T, B (out, r) = U S^1/2; the decomposition is of small matrices between the factors.
    Takes: two or more of any ranks, changes of no low rank too.
    Source: PEFT's `add_weighted_adapter(combination_type="svd")`, read in 0.21.2.
    Departures: S is in both factors alike where PEFT puts it into B; the product is the same. No clamp of outliers.
    """

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        return together(parts, self.weights)

    def rank(self, parts: Parts) -> int | None:
        return max((part.rank for part in parts if part.dense is None), default=0) or None
