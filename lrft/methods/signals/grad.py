"""The gradient of the loss with respect to the weight."""

from __future__ import annotations

from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.methods.signals._weight_gradient import weight_gradient
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class Grad(Statistic):
    """Gradient of the loss with respect to a site's weight, averaged over micro-batches.

        G = dL/dW = mean over micro-batches of dy^T x

    with x the site's inputs and dy the gradient of its outputs at the real tokens; L is the micro-batch's mean loss
    over its target tokens. It is formed without touching the weight. Micro-batches without a target have no loss and
    are left out of the mean.

    Shapes: x (tokens, in), dy (tokens, out), G (out, in), in float32.
    Keeps: the sum of the gradients, out in numbers, and the count of micro-batches.
    Source: the chain rule.
    Departures: none.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.batches = 0

    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.supervised.numel() == 0:
            return
        gradient = weight_gradient(x, dy, tokens)
        self.total = gradient if self.total is None else self.total.add_(gradient)
        self.batches += 1

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration batch with a target reached it")
        return self.total / self.batches
