"""The mean and the second moment of a layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class InputMoments(Statistic):
    """Mean and second moment of a layer's inputs over all real tokens, from which those of its outputs follow.

        M = mean of x x^T,  m = mean of x;   the covariance of W x + b is W (M - m m^T) W^T, its mean W m + b

    Shapes: x (in); the statistic is (in + 1, in) in float32, M and below it m.
    Keeps: the sums, in (in + 1) numbers, and the count of tokens. Forward passes alone; sites that share an input share
    it.
    Source: Yu et al., "Unified Low-rank Compression Framework for Click-through Rate Prediction", KDD 2024, arXiv
    2405.18146, and the authors' code, which takes both of the outputs.
    Departures: taken of the inputs, from which those of the outputs follow exactly.
    """

    backward = False
    of_input = True

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.tokens = 0

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        rows = x[tokens.real].float()
        sums = torch.cat([rows.mT @ rows, rows.sum(0, keepdim=True)])
        if not sums.isfinite().all():
            raise ValueError("its inputs have no finite moments on the calibration rows")
        self.sums = sums if self.sums is None else self.sums.add_(sums)
        self.tokens += len(rows)

    def result(self) -> Tensor:
        if self.sums is None:
            raise ValueError("no calibration batch reached it")
        return self.sums / self.tokens
