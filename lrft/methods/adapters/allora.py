"""ALLoRA: LoRA without scale and dropout, whose gradient is weighed by how far every output has moved."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.peft import lora_keys
from lrft.methods.adapters._pair import Pair
from lrft.ops.linalg import Context, in_shape_of
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def allora_form_keys(config: ALLoRA.Config, with_start: bool) -> dict[str, Json]:
    """A plain LoRA whose scale is 1: the rule is one of training alone."""
    return lora_keys(config.rank, config.rank)


@ADAPTERS.register
class ALLoRA(Pair, LowRank):
    """Adaptive-learning-rate LoRA: gradients of an output's row of B A are weighed by the inverse root of its norm.

        y   = x W^T + b + (x A^T) B^T
        W'  = W + B A
        c_i = 1 / sqrt(|(B A)_i| + 1 / eta^2)
        dB  = diag(c) D^T (x A^T),  dA = B^T diag(c) D^T x,  dx = D (W + B A)

    with r = `rank`, D = dL/dy (tokens, out), (B A)_i row i of the product, |.| its Euclidean norm, eta = `eta`. c is
    formed anew in every backward pass, by |(B A)_i|^2 = b_i (A A^T) b_i^T without the product, and has no gradient of
    its own. What goes back to the inputs is not weighed. There is no scale and no dropout: c takes the place of both.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W and every c_i = eta at step 0; rows that
    have moved are weighed less.
    Trains: r (in + out) numbers per site; the input, x A^T and the factors are kept for the backward pass.
    Source: Huang and Balestriero, "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", 2024, arXiv 2410.09692,
    its definition of c as third parties transcribe it; the paper's text was read in part and there is no code of the
    authors'.
    Departures: that gradients are scaled, and not the forward pass, the abstract says itself. Settled here: c acts on
    the raw gradient, before an optimizer's moments, and eta is 2 by default, the alpha / r of usual recipes, whose
    place it takes; the paper's own value was not found.
    Advice: optimizers that divide by the size of gradients (Adam) cancel what is common to all c, and of B most of the
    rest; the weighing of outputs in dA stays. Inits that move A and B are for `lora`.
    """

    aliases = {"adaptive_lr_lora": "adapter: allora"}
    provides = {"adapters", "mergeable", "linear_delta"}
    peft = PeftForm(allora_form_keys)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536)
        eta: float = Field(
            2.0, gt=0, le=1_000_000, description="weight of the gradient of a row that is still 0"
        )

    def branch(self) -> Branch:
        return Branch(self.A, self.B, self.scaling)

    def change(self) -> Tensor:
        """B A, with the gradient of training."""
        eye = torch.eye(self.site.in_features, dtype=self.A.dtype, device=self.A.device)
        transposed: Tensor = _Weighed.apply(eye, self.A, self.B, self.config.eta)  # type: ignore[no-untyped-call]
        return transposed.mT

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        term: Tensor = _Weighed.apply(x.to(dtype), self.A, self.B, self.config.eta)  # type: ignore[no-untyped-call]
        return term.to(x.dtype)


def weights(A: Tensor, B: Tensor, eta: float) -> Tensor:
    """The c_i of the rows of B A, (out,) float32."""
    squares = ((B @ (A @ A.mT)) * B).sum(dim=1)
    return (squares.clamp_min(0).sqrt() + eta**-2).rsqrt()


class _Kept(Context):
    eta: float


class _Weighed(torch.autograd.Function):
    """(x A^T) B^T for x (..., in), float32 masters A and B; the gradients are those of the docstring above."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, A: Tensor, B: Tensor, eta: float) -> Tensor:
        ctx.eta = eta
        flat = x.reshape(-1, x.shape[-1])
        t = flat @ A.to(x.dtype).mT
        ctx.save_for_backward(flat, t, A, B)
        return in_shape_of(t @ B.to(x.dtype).mT, x)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, t, A, B = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        c = weights(A, B, ctx.eta)[:, None]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ((dy @ B.to(dy.dtype)) @ A.to(dy.dtype)).view(*grads[0].shape[:-1], -1)
        dA = ((dy @ (c * B).to(dy.dtype)).mT @ x).float()
        dB = (dy.mT @ t).float().mul_(c)
        return dx, dA, dB, None
