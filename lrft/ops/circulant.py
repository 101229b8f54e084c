"""Products with a grid of circulant blocks, by Fourier transforms: no block is formed."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.ops.linalg import Context, in_shape_of


def circulant(kernels: Tensor) -> Tensor:
    """The matrix whose block (i, j) has w_ij[(q - p) mod b] in row p, column q: (m, n, b) -> (m b, n b)."""
    m, n, b = kernels.shape
    steps = torch.arange(b, device=kernels.device)
    blocks = kernels[..., (steps - steps[:, None]) % b]  # (m, n, b, b)
    return blocks.transpose(1, 2).reshape(m * b, n * b)


def circulant_linear(x: Tensor, kernels: Tensor) -> Tensor:
    """X circulant(kernels)^T, (..., n b) -> (..., m b) in the dtype of x, computed in float32.

    Args:
        kernels: (m, n, b) float32, which may train.
    """
    y: Tensor = _CirculantMatmul.apply(x, kernels)  # type: ignore[no-untyped-call]
    return y


class _CirculantMatmul(torch.autograd.Function):
    """Saves x and w. X, D and W are the transforms of the blocks of x, of dy and of w.

    At every frequency Y_i = sum_j X_j conj(W_ij), dX_j = sum_i D_i W_ij, dW_ij = sum over tokens of conj(D_i) X_j.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        X, W = _transform(x, kernels.shape[1]), torch.fft.rfft(kernels)
        return in_shape_of(_back(torch.einsum("tnk,mnk->tmk", X, W.conj()), kernels, x.dtype), x)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        D = _transform(grads[0], kernels.shape[0])
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dX = torch.einsum("tmk,mnk->tnk", D, torch.fft.rfft(kernels))
            dx = _back(dX, kernels, x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            dW = torch.einsum("tmk,tnk->mnk", D.conj(), _transform(x, kernels.shape[1]))
            dw = torch.fft.irfft(dW, n=kernels.shape[2])
        return dx, dw


def _transform(x: Tensor, blocks: int) -> Tensor:
    """(..., width) -> (tokens, blocks, b // 2 + 1) complex."""
    X: Tensor = torch.fft.rfft(x.reshape(-1, blocks, x.shape[-1] // blocks).float())
    return X


def _back(Y: Tensor, kernels: Tensor, dtype: torch.dtype) -> Tensor:
    """(tokens, blocks, b // 2 + 1) complex -> (tokens, width)."""
    y: Tensor = torch.fft.irfft(Y, n=kernels.shape[2]).flatten(1).to(dtype)
    return y
