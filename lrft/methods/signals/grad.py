"""The gradient of the loss with respect to the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.axes import SIGNALS
from lrft.core.stages import Statistic


@SIGNALS.register
class Grad(Statistic):
    """G = dL/dW = mean over micro-batches of dy^T x, (out, in) in float32, without touching the weight.

    Source: the chain rule. Departures: none.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.batches = 0

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor) -> None:
        gradient = dy.float().mT @ x.float()
        self.total = gradient if self.total is None else self.total.add_(gradient)
        self.batches += 1

    def result(self) -> Tensor:
        assert self.total is not None, "no calibration batch reached this site"
        return self.total / self.batches
