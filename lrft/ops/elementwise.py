"""Normalization, rotation and gating between the products of a layer, each one node that keeps no float32 copy.

What a norm or a gate was made of is noted on its result, so that products with it need not keep it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.ops.compiled import fusible
from lrft.ops.linalg import Context
from lrft.ops.made import note_on
from lrft.ops.native import Kernels, halves, in_rows, kernels_for


def rms_norm(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    """X / rms(x) * weight over the last axis, (..., d) -> (..., d) in the dtype of x; statistics are float32.

    Args:
        weight: (d,), in the dtype of x where it is multiplied after rounding (Llama), float32 before (Gemma).
        scale_first: whether `weight` is multiplied before the result is rounded to the dtype of x.
    """
    y: Tensor = _RMSNorm.apply(x, weight, eps, scale_first)  # type: ignore[no-untyped-call]
    note_on(y, lambda x, weight: _normalize(x, weight, eps, scale_first)[0], x, weight)
    return y


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    h: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    note_on(h, gate_up, gate, up)
    return h


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """X * cos + rotate_half(x) * sin, (B, H, L, D) with cos and sin (B, 1, L, D)."""
    y: Tensor = _Rotated.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    scale_first: bool


class _RMSNorm(torch.autograd.Function):
    """Saves x and 1 / rms(x), of which a weight that takes a gradient gets its own too."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
        y, r = _normalize(x, weight, eps, scale_first)
        ctx.scale_first = scale_first
        ctx.save_for_backward(x, r, weight)
        return y

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, r, weight = ctx.saved_tensors
        dw = _weight_back(grads[0], x, r, ctx.scale_first) if ctx.needs_input_grad[1] else None
        return _normalize_back(grads[0], x, r, weight, ctx.scale_first), dw, None, None


class _Gated(torch.autograd.Function):
    """Saves gate and up alone."""

    @staticmethod
    def forward(ctx: Context, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gate_up(gate, up)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return _gate_back(grads[0], *ctx.saved_tensors)


class _Rotated(torch.autograd.Function):
    """Saves the angles; the transpose of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _rotate_back(grads[0], *ctx.saved_tensors), None, None


def _normalize(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> tuple[Tensor, Tensor]:
    if (kernels := kernels_for(x)) is None or not _has_a_gain(kernels, weight, x):
        return _normalize_plainly(x, weight, eps, scale_first)
    x, r = x.contiguous(), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    y = torch.empty_like(x)
    kernels("normalize", x, weight.float().contiguous(), y, r, halves(x), float(eps), *_rows(x))
    return y, r


def _normalize_back(dy: Tensor, x: Tensor, r: Tensor, weight: Tensor, scale_first: bool) -> Tensor:
    if (kernels := kernels_for(dy, x)) is None or not _has_a_gain(kernels, weight, x):
        return _normalize_back_plainly(dy, x, r, weight, scale_first)
    x = x.contiguous()
    dx = torch.empty_like(x)
    kernels("normalize_back", dy.contiguous(), x, r, weight.float().contiguous(), dx, halves(x), *_rows(x))
    return dx


def gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, without a graph."""
    if (kernels := kernels_for(gate, up)) is None or gate.shape != up.shape:
        return _gate_up(gate, up)
    h = gate.new_empty(gate.shape)
    kernels("gate", gate.contiguous(), up.contiguous(), h, halves(h), h.numel())
    return h


def _gate_back(dh: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if (kernels := kernels_for(dh, gate, up)) is None or gate.shape != up.shape:
        return _gate_back_plainly(dh, gate, up)
    dgate, dup = (gate.new_empty(gate.shape) for _ in range(2))
    given = dh.contiguous(), gate.contiguous(), up.contiguous(), dgate, dup
    kernels("gate_back", *given, halves(dh), dh.numel())
    return dgate, dup


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = _turn(x, cos, sin, back=False)
    return _rotate_plainly(x, cos, sin) if turned is None else turned


def _rotate_back(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = _turn(dy, cos, sin, back=True)
    return _rotate_back_plainly(dy, cos, sin) if turned is None else turned


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor | None:
    """The rotation or its transpose by the kernels; None where they do not apply."""
    shaped = x.dim() == 4 and cos.shape == sin.shape == (cos.shape[0], 1, *x.shape[2:])
    kernels = kernels_for(x, cos, sin)
    if kernels is None:
        return None
    if not shaped or cos.shape[0] not in (1, x.shape[0]) or x.shape[-1] % 2:
        kernels.went_without(
            "rotations", f"angles have the shape {tuple(cos.shape)} where states have {tuple(x.shape)}"
        )
        return None
    x = in_rows(x)
    y = torch.empty_like(x)
    cos, sin = cos.contiguous(), sin.contiguous()
    row = 0 if cos.shape[0] == 1 else cos.stride(0)
    kernels("rotate", x, cos, sin, y, halves(x), int(back), *x.shape, *x.stride()[:3], row, cos.stride(2))
    return y


def _has_a_gain(kernels: Kernels, weight: Tensor, x: Tensor) -> bool:
    """Whether a norm has a gain for each of the last numbers of x, as the kernels take it."""
    fits = weight.shape == x.shape[-1:]
    if not fits:
        kernels.went_without("norms", f"a gain has the shape {tuple(weight.shape)}, not ({x.shape[-1]},)")
    return fits


def _rows(x: Tensor) -> tuple[int, int]:
    return x.shape[:-1].numel(), x.shape[-1]


@fusible
def _normalize_plainly(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> tuple[Tensor, Tensor]:
    wide = x.float()
    r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if scale_first:
        return (wide * r).mul_(weight).to(x.dtype), r
    return (wide * r).to(x.dtype).mul_(weight), r


@fusible
def _normalize_back_plainly(dy: Tensor, x: Tensor, r: Tensor, weight: Tensor, scale_first: bool) -> Tensor:
    """With n = x r and g = dy weight: dx = r (g - n mean(g n))."""
    g = dy.float() * weight if scale_first else (dy * weight).float()
    n = x.float() * r
    dot = (g * n).mean(-1, keepdim=True)
    return g.sub_(n.mul_(dot)).mul_(r).to(x.dtype)


@fusible
def _weight_back(dy: Tensor, x: Tensor, r: Tensor, scale_first: bool) -> Tensor:
    """The sum over the tokens of dy * n, with n = x r as it meets the weight, (d,) float32."""
    n = x.float() * r
    n = n if scale_first else n.to(x.dtype).float()
    return (dy.float() * n).flatten(0, -2).sum(0)


@fusible
def _gate_up(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)


@fusible
def _gate_back_plainly(dh: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(dh * up, gate), F.silu(gate).mul_(dh)


@fusible
def _rotate_plainly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos) + (turned * sin)


@fusible
def _rotate_back_plainly(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = dy.shape[-1] // 2
    turned = dy * sin
    back = torch.cat((turned[..., half:], -turned[..., :half]), dim=-1)
    return (dy * cos) + back
