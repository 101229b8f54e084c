"""Families that write over what their projections give them."""

from __future__ import annotations

from torch import Tensor, nn

from lrft.core.adapted import Adapted

CLIPPED = ("q_proj", "k_proj", "v_proj")


def give_copies(hf: nn.Module) -> None:
    """Let adapted projections of attention give copies where the family's code clips them in place (`clip_qkv`).

    A node that keeps what it gave, as one with a gain does, would else refuse its backward pass.
    """
    if getattr(getattr(hf, "config", None), "clip_qkv", None) is None:
        return
    for name, module in hf.named_modules():
        if isinstance(module, Adapted) and name.endswith(CLIPPED):
            module.register_forward_hook(_copied)


def _copied(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y.clone()
