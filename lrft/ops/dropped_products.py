"""Products with what dropout left of an input, where the products with all of it are taken anyway: few entries differ.

u = k W^T for the kept entries k of x is x W^T less the product of what was dropped, and dy W is wanted at those places
alone: at a probability of 0.05 each takes a quarter of the time of a product with everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.native import Kernels, halves, kernels_for

BLOCK = 256  # outputs that a packed weight keeps together, as in kernels/dropped.cpp


def kernels_of(x: Tensor, zeros: Tensor) -> Kernels | None:
    """The kernels, for float32 numbers x (tokens, in) of which positions were dropped (`lrft.ops.dropout.Dropped`)."""
    return kernels_for(x) if x.dtype == torch.float32 and zeros.dtype == torch.int64 else None


class Packed:
    """A weight (out, in) float32 as the kernels read it, by blocks of outputs, until the next one is packed."""

    def __init__(self, kernels: Kernels, weight: Tensor) -> None:
        self.kernels = kernels
        self.outs, self.ins = weight.shape
        self.numbers = kernels.room("packed", -(-self.outs // BLOCK) * BLOCK * self.ins)
        kernels("pack", weight.contiguous(), self.numbers, self.ins, self.outs)

    def kept_product(
        self, x: Tensor, zeros: Tensor, y: Tensor, half: torch.dtype, by: Tensor, bias: Tensor | None
    ) -> Tensor:
        """U (tokens, out) in `half`; y, which is x W^T in float32, becomes y + by * u + bias.

        Args:
            x: (tokens, in) float32.
            zeros: what was dropped of it, flat positions in ascending order.
            by, bias: (out,) float32.
        """
        u = torch.empty_like(y, dtype=torch.bfloat16 if half == torch.bfloat16 else torch.float32)
        self.kernels(
            "dropped_product",
            *(x.contiguous(), zeros, len(zeros), self.numbers, y, u, halves(u), by, bias),
            *(len(x), self.ins, self.outs),
        )
        return u.to(half)

    def add_dots(self, dy: Tensor, zeros: Tensor, found: Tensor) -> None:
        """Add to `found` (k,) the entries of dy W that `zeros` (k,) name, for dy (tokens, out); all float32."""
        self.kernels(
            "dropped_dots",
            *(dy.contiguous(), zeros, len(zeros), self.numbers, found),
            *(len(dy), self.ins, self.outs),
        )
