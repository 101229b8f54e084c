"""A low-rank term beside a frozen matmul: `Branch` says the formula, one autograd node computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.branch_matmul import multiply
from lrft.ops.dropout import Dropped, drop
from lrft.ops.formed import Formed, FrozenMap, Pair
from lrft.ops.gains import column_dots, scale_columns
from lrft.ops.linalg import Context
from lrft.ops.term import Gain, Norms, Term


@dataclass(frozen=True)
class Branch:
    """y = gain / norms * (x W^T + scale (drop(x) down^T) up^T) + b, the change of one linear map by a low-rank term.

    Attributes:
        down: (k, in) and `up`: (out, k), float32 masters or made of them with a graph; None where they are `formed`.
        gain: (out,) float32 on every output, the bias left out; None for 1.
        norms: what the gain is divided by, a function of W; None for 1.
        dropout: probability that training drops an input of the branch; the base sees all of x.
        formed: the factors where they are too large to be kept.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    gain: Tensor | None = None
    dropout: float = 0.0
    formed: Formed | None = None
    norms: Norms | None = None

    def pair(self) -> Pair:
        """(down, up), formed anew where they are not kept; without a graph then."""
        if self.formed is not None:
            return self.formed.form(torch.float32, *self.formed.trained)
        assert self.down is not None and self.up is not None, "a branch has both factors, or forms them"
        return self.down, self.up

    def dense(self) -> Tensor:
        """Scale * up down, (out, in) in the factors' dtype; with a graph to the trained tensors."""
        down, up = self.pair() if self.formed is None else self._formed(self.formed)
        return self.scale * up @ down

    @staticmethod
    def _formed(formed: Formed) -> Pair:
        pair: Pair = _Forming.apply(formed, *formed.trained)  # type: ignore[no-untyped-call]
        return pair

    def parts(self) -> Formed:
        """The branch as the node takes it: plain factors are the trained tensors themselves."""
        if self.formed is not None:
            return self.formed
        down, up = self.pair()
        return Formed((down, up), _as_they_are, _to_each, down.requires_grad, up.requires_grad)

    def term(self, base: FrozenMap) -> Term:
        """The branch on top of a frozen map, for the node."""
        gain = None if self.gain is None else Gain(self.gain, self.norms)
        return Term(base, self.parts(), self.scale, gain)

    def gain_on(self, base: FrozenMap) -> Tensor | None:
        """What every output is multiplied with, (out,), with a graph to the gain."""
        if self.gain is None or self.norms is None:
            return self.gain
        weight = base.weight()
        return self.gain / self.norms(weight, True)


def branch_linear(
    x: Tensor,
    base: FrozenMap | None,
    branch: Branch,
    *,
    dtype: torch.dtype | None = None,
    training: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """The branch on top of `base`, (..., in) -> (..., out) in the dtype of x.

    With dropout d and a gain g: b + x W^T + (g - 1) * (d(x) W^T) + g * scale (d(x) down^T) up^T, one draw of d. Sites
    that read the same tensor share the draw.

    Args:
        base: the frozen map; None for the low-rank term alone, without gain and bias.
        dtype: precision of the low-rank products, by default that of x.
        weight: (out, in) of `base` where it was decoded already.
    """
    dropped = drop(x, branch.dropout, shared=base is not None) if training and branch.dropout > 0 else None
    if base is None:
        return _term(x, branch, dtype or x.dtype, dropped)
    if dtype is None or dtype == x.dtype:
        return multiply(x, [branch.term(base)], dropped, weight)[0]
    term = _term(x, branch, dtype, dropped)
    if (gain := branch.gain_on(base)) is None:
        return base(x) + term
    frozen = base(x if dropped is None else dropped.whole(x))
    if base.bias is not None:
        frozen = frozen - base.bias
    rest = gain if dropped is None else gain - 1
    y = gain_columns(frozen, rest) + gain_columns(term, gain)
    if dropped is not None:
        return base(x) + y
    return y if base.bias is None else y + base.bias


def gain_columns(u: Tensor, gain: Tensor) -> Tensor:
    """U * gain for u (..., out) in half precision and gain (out,) in float32, with a graph to both."""
    scaled: Tensor = _GainColumns.apply(u, gain)  # type: ignore[no-untyped-call]
    return scaled


def _term(x: Tensor, branch: Branch, dtype: torch.dtype, dropped: Dropped | None) -> Tensor:
    """Scale (x down^T) up^T, computed in `dtype`, in the dtype of x."""
    cast = None if dropped is None else dropped.to(dtype)
    return multiply(x.to(dtype), [Term(None, branch.parts(), branch.scale)], cast)[0].to(x.dtype)


def _as_they_are(dtype: torch.dtype, down: Tensor, up: Tensor) -> Pair:
    return down, up


def _to_each(
    dtype: torch.dtype, d_down: Tensor | None, d_up: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor | None, ...]:
    return d_down, d_up


class _Kept(Context):
    parts: Formed


class _Forming(torch.autograd.Function):
    """The factors with a graph to the trained tensors, by the same `pull` as in training."""

    @staticmethod
    def forward(ctx: _Kept, parts: Formed, *trained: Tensor) -> Pair:
        ctx.parts = parts
        ctx.save_for_backward(*trained)
        down, up = parts.form(torch.float32, *trained)
        return down.float().clone(), up.float().clone()

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.parts
        d_down, d_up = grads
        wanted = d_down if parts.trains_down else None, d_up if parts.trains_up else None
        return None, *parts.pull(torch.float32, *wanted, *ctx.saved_tensors)


class _GainColumns(torch.autograd.Function):
    """`scale_columns` with the gradients of both."""

    @staticmethod
    def forward(ctx: Context, u: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(u, gain)
        return scale_columns(u, gain)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor]:
        u, gain = ctx.saved_tensors
        (dy,) = grads
        return scale_columns(dy, gain), column_dots(dy.flatten(0, -2), u.flatten(0, -2))
