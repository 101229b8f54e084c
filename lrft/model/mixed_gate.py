"""The gates of experts that were taken apart, in one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.apart import Apart
from lrft.ops.elementwise import gated

Forward = Callable[..., Any]
TOKENS = 3  # of a trial


class MixedGate:
    """Experts taken apart that gate by SiLU.

    Args:
        like: a tensor of the precision and on the device of what goes in.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def key(self, module: nn.Module) -> object:
        if not isinstance(module, Apart) or not module.has_gate:
            return None
        return type(module), type(module._modules.get("act_fn"))

    def forward(self, module: nn.Module, mode: bool) -> Forward | None:
        assert isinstance(module, Apart), "its key says so"
        first = torch.randn(TOKENS, 16, device=self.like.device).to(self.like.dtype)
        return _mixed_forward if torch.equal(_gated_halves(first), module.inner(first)) else None


def _gated_halves(first: Tensor) -> Tensor:
    return gated(*first.chunk(2, dim=-1))


def _mixed_forward(self: Apart, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    y: Tensor = self.mix(x, experts, weights, _gated_halves)
    return y
