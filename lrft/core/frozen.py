"""`FrozenLinear`: a linear map that does not train, and the only thing that knows how its weight is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenLinear(nn.Module):
    """y = x W^T + b with W held in some storage format.

    A format is a subclass with `weight` and `write`. Everything else, adapters included, sees a dense
    (out, in) weight and never a bit width. `forward` is computed from `weight()`, so what trains is what merges.

    Args:
        weight: dense weight (out, in); encoded by the subclass.
        bias: (out,) or None. Kept in the weight's dtype, never trained.
    """

    provides: ClassVar[set[str]] = set()
    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = weight.dtype
        self.edited = False
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)
        self.encode(weight.detach())

    def encode(self, weight: Tensor) -> None:
        """Store the dense (out, in) `weight` in this format."""
        raise NotImplementedError(f"{type(self).__name__} declares no encoding")

    def weight(self) -> Tensor:
        """The dense weight (out, in) in the compute dtype, whatever the storage."""
        raise NotImplementedError(f"{type(self).__name__} declares no decoding")

    def write(self, weight: Tensor) -> None:
        """Replace the weight: re-encode `weight` (out, in) and remember that the base was edited."""
        self.encode(weight.detach().to(self.compute_dtype))
        self.edited = True

    @property
    def stored_bytes(self) -> int:
        """Bytes the storage occupies, scales included, bias left out."""
        return sum(b.numel() * b.element_size() for name, b in self.named_buffers() if name != "bias")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return _FrozenMatmul.apply(x, self)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class _FrozenMatmul(torch.autograd.Function):
    """x W^T + b, decoding W again in the backward pass instead of keeping the dense copy alive between the two.

    Measured on CPU, decoding twice costs nothing that can be seen, and it is what makes a 4-bit base 4 bits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = grads
        return (grad @ ctx.layer.weight() if ctx.needs_input_grad[0] else None), None


Quantizer = Callable[[Tensor, Tensor | None], FrozenLinear]
"""Makes the frozen layer from a dense weight (out, in) and an optional bias (out,)."""
