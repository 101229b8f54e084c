"""Liger's kernels for norms and gates, as far as lrft takes them: on a GPU, in training, where a recipe asks for them.

They are given what `lrft.ops.elementwise` is given. Not taken: its rotation, which may write into what it is given, and
its losses, since lrft's never has the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lrft.ops.elementwise import gate_up
from lrft.ops.linalg import Context
from lrft.ops.made import note_on
from lrft.registry.errors import MissingExtra, RecipeError

KEY = "model.liger"
PACKAGE = "liger_kernel"
FUNCTIONS = "liger_kernel.transformers.functional"
ROUNDING = 2.0**-6  # of the norm of what comes out: what kernels that round in another order may differ by

Forward = Callable[..., Any]


def check_liger(device: torch.device) -> None:
    """Refuse Liger where it cannot run.

    Raises:
        RecipeError: there is no GPU.
        MissingExtra: it is not installed.
    """
    if device.type != "cuda":
        raise RecipeError(
            f"its kernels run on a GPU, and this training is on {device.type}; write false", KEY
        )
    if find_spec(PACKAGE) is None:
        raise MissingExtra(f"{KEY}: needs `pip install lrft[liger]`, or write false")


def norm(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    """As `lrft.ops.elementwise.rms_norm`. The gradient is not written over what comes in, which others may hold."""
    mode = "gemma" if scale_first else "llama"
    y: Tensor = _functions().liger_rms_norm(x, weight, eps, 0.0, mode, False)
    return y


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """As `lrft.ops.elementwise.gated`."""
    h: Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
    note_on(h, gate_up, gate, up)
    return h


def taken(own: Forward, other: Forward, module: nn.Module, x: Tensor) -> Forward:
    """Another kernel's forward pass in the place of the one that was recognised.

    Raises:
        RecipeError: it gives other values or gradients.
    """
    for expected, found in zip(_tried(own, module, x), _tried(other, module, x), strict=True):
        if not bool((found - expected).norm() <= ROUNDING * expected.norm()):
            what = f"the kernel of {PACKAGE} gives other values than {type(module).__name__}"
            raise RecipeError(f"{what}; write false, or install another version", KEY)
    return other


@torch.enable_grad()
def _tried(forward: Forward, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of what went in; of weights that train, as they are once they are frozen."""
    torch.manual_seed(0)
    given = x.detach().clone().requires_grad_()
    training = [
        parameter.requires_grad_(False) for parameter in module.parameters() if parameter.requires_grad
    ]
    try:
        y: Tensor = forward(module, given)
    finally:
        for parameter in training:
            parameter.requires_grad_(True)
    seed = torch.linspace(-1, 1, y.numel(), device=y.device).sin_().view_as(y).to(y.dtype)
    return y.detach().float(), torch.autograd.grad(y, given, seed)[0].float()


class _Gate(torch.autograd.Function):
    """Liger's backward pass writes the gradients over what it saved, so it is given copies, which live that long."""

    @staticmethod
    def forward(ctx: Context, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        h: Tensor = _functions().liger_swiglu(gate, up)
        return h

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, ...]:
        copies = tuple(saved.detach().clone().requires_grad_() for saved in ctx.saved_tensors)
        with torch.enable_grad():
            h = _functions().liger_swiglu(*copies)
        return torch.autograd.grad(h, copies, grads[0])


def _functions() -> Any:
    return import_module(FUNCTIONS)
