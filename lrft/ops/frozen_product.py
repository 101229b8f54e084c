"""A frozen weight times a thin trained matrix."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context


def frozen_product(K: Tensor, base: FrozenMap, weight: Tensor) -> Tensor:
    """W K, (in, r) -> (out, r) float32, computed in the precision of `weight`, the decoded W (out, in) of `base`.

    W is decoded again in the backward pass.
    """
    product: Tensor = _FrozenProduct.apply(K, base, weight)  # type: ignore[no-untyped-call]
    return product


class _Kept(Context):
    base: FrozenMap


class _FrozenProduct(Function):
    """Saves nothing: dK = W^T d."""

    @staticmethod
    def forward(ctx: _Kept, K: Tensor, base: FrozenMap, weight: Tensor) -> Tensor:
        ctx.base = base
        return (weight @ K.to(weight.dtype)).float()

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.base.weight()
        return (weight.mT @ grads[0].to(weight.dtype)).float(), None, None
