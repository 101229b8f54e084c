"""What rounding the keys or values of a layer costs, as attention keeps them and with every head rotated."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Tokens
from lrft.methods.signals.rotation_error import RotationError
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class KeptError(RotationError):
    """What rounding keys or values to few bits costs, every head of a token by itself, as it is and rotated.

        e_R = mean over tokens of the sum over heads of |Q(k R) - k R|^2,  R = I and R = diag(s) H

    with Q and R those of `adapter: roste`, k a head of the keys behind their rotation to a position, or of the values.

    Shapes: k (head); the two numbers e, in float32. Of layers that give neither keys nor values there is none.
    Keeps: two sums and the count of tokens. Forward passes alone.
    Source: Wei et al., "RoSTE", 2025, arXiv 2502.09003, and the authors' code (Hong-Lab-UMN-ECE/RoSTE).
    Departures: none; the code has means over all entries, whose order is the same.

    Args:
        bits: of an entry; None measures nothing.
        clip: share of the range that the rounded numbers span.
    """

    of_input = False

    @property
    def of_kept(self) -> bool:
        return self.bits is not None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if self.bits is not None:
            super().update(x, dy, tokens)

    def result(self) -> Tensor:
        return torch.zeros(2) if self.bits is None else super().result()
