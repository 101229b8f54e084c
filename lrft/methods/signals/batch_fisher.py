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

    with L the micro-batch's mean loss, n its target tokens. Being squared after the mean, F depends on how the tokens
    are cut into micro-batches. Micro-batches without a target are left out.

    Shapes: F, g (out, in), in float32.
    Keeps: the weighed sum, out in numbers, and the sum of n.
    Source: Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025, and the
    authors' code.
    Departures: none.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.targets = 0

    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        count = tokens.supervised.numel()
        if count == 0:
            return
        weighed = weight_gradient(x, dy, tokens).square_().mul_(count)
        self.total = weighed if self.total is None else self.total.add_(weighed)
        self.targets += count

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration batch with a target reached it")
        return self.total / self.targets
