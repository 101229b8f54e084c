"""Products with a matrix of which a few Fourier coefficients are given: it is never formed, nor is its spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.linalg import Context, in_shape_of

CHUNK = 512  # coefficients whose products with all tokens exist at a time


def spectrum_linear(x: Tensor, coefficients: Tensor, rows: Tensor, columns: Tensor, out: int) -> Tensor:
    """X M^T for M_pq = sum_l c_l cos(2 pi (p j_l / out + q k_l / in)), (..., in) -> (..., out) in the dtype of x.

    A Fourier transform of x along its features, a product for each coefficient, and one back: O(in log in + L +
    out log out) a token, in float32.

    Args:
        coefficients: c (L,) float32, which may train.
        rows, columns: j and k (L,), whole numbers below out and in.
    """
    y: Tensor = _SpectrumMatmul.apply(x, coefficients, rows, columns, out)  # type: ignore[no-untyped-call]
    return y


class _Kept(Context):
    out: int


class _SpectrumMatmul(torch.autograd.Function):
    """Saves x. With X and D the transforms of x and dy: dc_l = sum over tokens of Re(X[k_l] D[j_l]); dx = dy M."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, c: Tensor, rows: Tensor, columns: Tensor, out: int) -> Tensor:
        ctx.out = out
        ctx.save_for_backward(x, c, rows, columns)
        flat = x.reshape(-1, x.shape[-1])
        y = _back(_transform(flat), c, _Bins(columns, flat.shape[1]), _Bins(rows, out))
        return in_shape_of(y.to(x.dtype), x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, c, rows, columns = ctx.saved_tensors
        width = x.shape[-1]
        source, target = _Bins(columns, width), _Bins(rows, ctx.out)
        D = _transform(grads[0].reshape(-1, ctx.out))
        dx = dc = None
        if ctx.needs_input_grad[0]:
            dx = _back(D, c, target, source).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            dc = _products(_transform(x.reshape(-1, width)), D, source, target)
        return dx, dc, None, None, None


class _Bins:
    """Frequencies of a real signal of `size` numbers: of f and size - f, which are conjugate, the lower is kept."""

    def __init__(self, frequencies: Tensor, size: int) -> None:
        self.size = size
        self.upper = frequencies > size // 2
        self.places = torch.where(self.upper, size - frequencies, frequencies)

    def signs(self, other: _Bins) -> Tensor:
        """Of the imaginary parts in a product of transforms at these frequencies and those of `other`."""
        return torch.where(self.upper == other.upper, -1.0, 1.0)


def _transform(x: Tensor) -> Tensor:
    """(tokens, n) -> (n // 2 + 1, tokens, 2) float32: real and imaginary parts."""
    return torch.view_as_real(torch.fft.rfft(x.mT.float(), dim=0))


def _back(X: Tensor, c: Tensor, source: _Bins, target: _Bins) -> Tensor:
    """X at the source's frequencies, times c, at the target's, and transformed back: (tokens, n of the target)."""
    alone = target.places * 2 % target.size == 0  # its own conjugate: real, and not one half of two
    real = torch.where(alone, 1.0, 0.5) * c
    imaginary = torch.where(alone, 0.0, 0.5 * source.signs(target)) * c
    factors = torch.stack([real, imaginary], dim=1)[:, None]
    Y = X.new_zeros(target.size // 2 + 1, X.shape[1], 2)
    for parts in zip(
        source.places.split(CHUNK), target.places.split(CHUNK), factors.split(CHUNK), strict=True
    ):
        Y.index_add_(0, parts[1], X[parts[0]].mul_(parts[2]))
    y: Tensor = torch.fft.irfft(torch.view_as_complex(Y), n=target.size, dim=0, norm="forward")
    return y.mT


def _products(X: Tensor, D: Tensor, source: _Bins, target: _Bins) -> Tensor:
    """Sum over the tokens of the real part of X D at every pair of frequencies, (L,)."""
    places = zip(source.places.split(CHUNK), target.places.split(CHUNK), strict=True)
    parts = torch.cat([X[k].mul_(D[j]).sum(1) for k, j in places])  # (L, 2)
    return parts[:, 0] + source.signs(target) * parts[:, 1]
