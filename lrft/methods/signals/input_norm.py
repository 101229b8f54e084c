"""How large each input of a layer is."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class InputNorm(Statistic):
    """How large each input of a layer is: its L2 norm over all real tokens.

        n_j = sqrt(sum over tokens of x_j^2)

    Shapes: x (tokens, in), n (in) in float32.
    Keeps: the sums of squares, in numbers. Forward passes alone; sites that share an input share it.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv
    2306.11695 (Wanda).
    Departures: none; the authors' code takes the mean of the squares over the samples, which orders alike.
    """

    backward = False
    of_input = True

    def __init__(self) -> None:
        self.squares: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        squares = x[tokens.real].float().square().sum(0)
        if not squares.isfinite().all():
            raise ValueError("its inputs have no finite norm on the calibration rows")
        self.squares = squares if self.squares is None else self.squares.add_(squares)

    def result(self) -> Tensor:
        if self.squares is None:
            raise ValueError("no calibration batch reached it")
        return self.squares.sqrt()
