"""How large each output of a layer is."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class OutputNorm(Statistic):
    """How large each output of a layer is: its L2 norm over all real tokens.

        n_j = sqrt(sum over tokens of y_j^2)

    with y the layer's outputs, bias included.

    Shapes: y (tokens, out), n (out) in float32.
    Keeps: the sums of squares, out numbers. Forward passes alone.
    Source: Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV 2023,
    arXiv 2309.08513, and the authors' code, whose norms are those of each class and are averaged over the classes.
    Departures: texts have no classes, so there is one.
    """

    backward = False
    of_output = True

    def __init__(self) -> None:
        self.squares: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        squares = x[tokens.real].float().square().sum(0)
        if not squares.isfinite().all():
            raise ValueError("its outputs have no finite norm on the calibration rows")
        self.squares = squares if self.squares is None else self.squares.add_(squares)

    def result(self) -> Tensor:
        if self.squares is None:
            raise ValueError("no calibration batch reached it")
        return self.squares.sqrt()
