"""Squared gradients of micro-batches, weighed by their target tokens."""

from __future__ import annotations

from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.methods.signals._weight_gradient import weight_gradient
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class BatchFisher(Statistic):
    """Squared gradients of micro-batches, weighed by their target tokens.

        F = sum over micro-batches of n g * g / sum of n,  g = dL/dW

    with L the micro-batch's mean loss, n its target tokens, or 1 without `weighed`. Being squared after the mean, F
    depends on how the tokens are cut into micro-batches. Micro-batches without a target are left out.

    Shapes: F, g (out, in), in float32.
    Keeps: the weighed sum, out in numbers, and the sum of n.
    Source: weighed, Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025, and
    the authors' code; without weights, He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV
    2023.
    Departures: none.
    """

    def __init__(self, *, weighed: bool = True) -> None:
        self.weighed = weighed
        self.total: Tensor | None = None
        self.targets = 0

    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        count = tokens.supervised.numel()
        if count == 0:
            return
        count = count if self.weighed else 1
        weighed = weight_gradient(x, dy, tokens).square_().mul_(count)
        self.total = weighed if self.total is None else self.total.add_(weighed)
        self.targets += count

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration batch with a target reached it")
        return self.total / self.targets
