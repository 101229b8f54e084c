"""Norms of what goes into a layer or comes out of it, channel by channel, which two signals have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens


class Norms(Statistic):
    """The L2 norm of every channel over all real tokens, (channels,) in float32; one says of what.

    Attributes:
        what: `inputs` or `outputs`, as a message calls them.
    """

    what: ClassVar[str]

    def __init__(self) -> None:
        self.squares: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        squares = x[tokens.real].float().square().sum(0)
        if not squares.isfinite().all():
            raise ValueError(f"its {self.what} have no finite norm on the calibration rows")
        self.squares = squares if self.squares is None else self.squares.add_(squares)

    def result(self) -> Tensor:
        if self.squares is None:
            raise ValueError("no calibration batch reached it")
        return self.squares.sqrt()
