"""WiSE-FT: a point on the line between two models."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts, together
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, MethodConfig


@COMBINATIONS.register
class WiSEFT(Combination):
    """Interpolate in the weights, between the base and a fine-tuned model or between two of them.

        W' = (1 - alpha) W + alpha (W + delta_1) = W + alpha delta_1                 of one parent
        W' = (1 - alpha) (W + delta_1) + alpha (W + delta_2)                         of two

    with `alpha` from 0, the first end, to 1, the last. `--curve N` scores N points of the line and draws them.

    Shapes: A (r, in), B (out, r), r the rank of the parent or the sum of both; exact.
    Takes: one or two of any kind; no weights, as `alpha` is one.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903.
    Departures: the change of an adapter is what is interpolated, so parameters without one stay as they are.
    """

    least, most = 1, 2
    weighs = "none"

    config: Config

    class Config(MethodConfig):
        alpha: float = Field(0.5, ge=0, le=1)

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        alpha = self.config.alpha
        return together(parts, [alpha] if len(parts) == 1 else [1 - alpha, alpha])
