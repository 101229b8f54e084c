"""The second moment of a layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class InputCov(Statistic):
    """Uncentred covariance of a site's inputs, averaged over micro-batches.

        C = mean over micro-batches of X^T X,  X = x / |max x|

    with x the site's inputs at the real tokens, max x the largest signed entry of the micro-batch.

    Shapes: x, X (tokens, in), C (in, in), in float32.
    Keeps: the sum, in^2 numbers, and the count of micro-batches. Forward passes alone; sites that share an input share
    it.
    Source: Yang et al., "CorDA", NeurIPS 2024, and the authors' code.
    Departures: the sum is divided by the number of micro-batches, as in PEFT; the authors' code divides by 256, the
    number it is run with.
    """

    backward = False
    of_input = True

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.batches = 0

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        rows = x[tokens.real].float()
        rows = rows / rows.max().abs()
        moment = rows.mT @ rows
        if not moment.isfinite().all():
            raise ValueError("its inputs have no finite covariance on the calibration rows")
        self.total = moment if self.total is None else self.total.add_(moment)
        self.batches += 1

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration batch reached it")
        return self.total / self.batches
