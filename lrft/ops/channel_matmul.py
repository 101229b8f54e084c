"""A frozen product that computes some outputs, or reads some inputs, of some of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.formed import FrozenMap
from lrft.ops.linalg import Context, in_shape_of
from lrft.ops.products import linear, matmul


@dataclass(frozen=True)
class Channels:
    """Which channels of a layer which tokens go through.

    Attributes:
        index: (k,) the outputs that are computed, or the inputs that are read.
        of_inputs: which of the two.
        sparse, dense: flat indices of the tokens that see these channels alone, and of those that see all.
    """

    index: Tensor
    of_inputs: bool
    sparse: Tensor
    dense: Tensor


def channel_linear(x: Tensor, base: FrozenMap, channels: Channels) -> Tensor:
    """X W^T + b at the tokens and channels that are computed, and 0 elsewhere, (..., in) -> (..., out)."""
    y: Tensor = _ChannelMatmul.apply(x, base, channels)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    base: FrozenMap
    of_inputs: bool


class _ChannelMatmul(torch.autograd.Function):
    """Keeps indices alone, no activation, and decodes W again in the backward pass.

    dx is exact for this product: what was not computed, or not read, gives no gradient.
    """

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, base: FrozenMap, channels: Channels) -> Tensor:
        index, sparse, dense = channels.index, channels.sparse, channels.dense
        ctx.base, ctx.of_inputs = base, channels.of_inputs
        ctx.save_for_backward(index, sparse, dense)
        flat, weight, bias = x.reshape(-1, x.shape[-1]), base.weight(), base.bias
        y = flat.new_zeros(len(flat), len(weight))
        if channels.of_inputs:
            y[sparse] = linear(flat[sparse[:, None], index], weight[:, index], bias)
        else:
            y[sparse[:, None], index] = linear(
                flat[sparse], weight[index], None if bias is None else bias[index]
            )
        y[dense] = linear(flat[dense], weight, bias)
        return in_shape_of(y, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        index, sparse, dense = ctx.saved_tensors
        weight, dy = ctx.base.weight(), grads[0].reshape(-1, grads[0].shape[-1])
        dx = dy.new_zeros(len(dy), weight.shape[1])
        if ctx.of_inputs:
            dx[sparse[:, None], index] = matmul(dy[sparse], weight[:, index])
        else:
            dx[sparse] = matmul(dy[sparse[:, None], index], weight[index])
        dx[dense] = matmul(dy[dense], weight)
        return in_shape_of(dx, grads[0]), None, None
