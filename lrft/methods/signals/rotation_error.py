"""What rounding the inputs of a layer costs, as they are and rotated."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.ops.hadamard import rotation_of
from lrft.ops.uniform import rounded_rows
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class RotationError(Statistic):
    """What rounding the inputs of a layer to few bits costs, as they are and rotated.

        e_R = mean over tokens of |Q(x R) - x R|^2,  R = I and R = diag(s) H

    with Q and R those of `adapter: roste`.

    Shapes: x (tokens, in); the two numbers e, in float32.
    Keeps: two sums and the count of tokens. Forward passes alone; sites that share an input share it.
    Source: Wei et al., "RoSTE", 2025, arXiv 2502.09003.
    Departures: settled here: the mean is over tokens, each a row x of the paper's formula, over the micro-batches that
    the init asks for.

    Args:
        bits: of an entry; None rounds nothing.
        clip: share of the range that the rounded numbers span.
    """

    backward = False
    of_input = True

    def __init__(self, *, bits: int | None = 4, clip: float = 1.0) -> None:
        self.bits, self.clip = bits, clip
        self.total: Tensor | None = None
        self.tokens = 0

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        rows = x[tokens.real].float()
        turned = rotation_of(rows.shape[-1]).turn(rows)
        errors = [
            (rounded_rows(seen, self.bits, self.clip) - seen).square().sum(dtype=torch.float64)
            for seen in (rows, turned)
        ]
        found = torch.stack(errors).cpu()
        if not found.isfinite().all():
            raise ValueError("its inputs are not finite on the calibration rows")
        self.total = found if self.total is None else self.total + found
        self.tokens += len(rows)

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration batch reached it")
        return (self.total / self.tokens).float()
