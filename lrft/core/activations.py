"""`OnActivations`: an adapter that maps what goes into a frozen map and what comes out of it, token by token."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.ops.gains import scaled


class OnActivations(Adapter):
    """y = G(W (c * x) + b), with a gain c on every input and an affine G of the outputs.

    A subclass says `inputs`, `outputs` or both; forward, merged weight and merged bias follow. The base computes as it
    is stored, and of a weight's size nothing is made. Gains stand near 1, where half precision has no room for a small
    change, so they multiply in float32 and are written in it, unless `dtype` says otherwise.
    """

    wide = True

    def inputs(self) -> Tensor | None:
        """The gains c (in,) as they are used, with a graph; None where inputs are left alone."""
        return None

    def outputs(self, y: Tensor) -> Tensor:
        """G, (..., out) -> (..., out) in the dtype of y; `y` itself where outputs are left alone."""
        return y

    def at_use(self, numbers: Tensor) -> Tensor:
        """Trained numbers in the precision they multiply in."""
        return numbers if self.compute_dtype is None else numbers.to(self.compute_dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        gains = self.inputs()
        return self.outputs(base(x if gains is None else scaled(x, gains)))

    def delta_weight(self, weight: Tensor) -> Tensor:
        dense, gains = weight.float(), self.inputs()
        columns = dense if gains is None else dense * gains
        mapped = self.outputs(columns.mT) - self.outputs(dense.new_zeros(dense.shape[0]))  # its linear part
        return (mapped.mT - dense).to(weight.dtype)

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        wide = bias.float()
        mapped = self.outputs(wide)
        return None if mapped is wide else mapped - wide
