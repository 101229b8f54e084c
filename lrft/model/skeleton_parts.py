"""What the layers of `lrft.model.skeleton` are made of."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.model.skeleton_families import Family
from lrft.ops.elementwise import gated, rms_norm


class Linear(nn.Linear):
    """A linear layer whose weight nobody draws."""

    def reset_parameters(self) -> None:
        """Nothing to draw."""


class Embedding(nn.Embedding):
    """The same of an embedding."""

    def reset_parameters(self) -> None:
        """Nothing to draw."""


class Config(SimpleNamespace):
    """A configuration as transformers' objects answer for it.

    Attributes:
        angles: numbers of cosines, and of sines, that a position has.
    """

    _attn_implementation = "segmented"

    def __init__(self, settings: Mapping[str, Any], family: Family) -> None:
        super().__init__(**settings)
        if family.latent:
            self.head_dim = self.qk_rope_head_dim
        elif not getattr(self, "head_dim", None):
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.angles = self.head_dim // 2 if family.sinks else self.head_dim

    def get_text_config(self) -> Config:
        """Itself: there is no other part."""
        return self


class Norm(nn.Module):
    """A norm by the root mean square: one node while its own weight is frozen, else as transformers writes it."""

    def __init__(self, width: int, dtype: torch.dtype, offset: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype), requires_grad=False)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if not (isinstance(self.weight, nn.Parameter) and self.weight.requires_grad):
            weight = self.weight.float() + 1 if self.offset else self.weight
            return rms_norm(x, weight, 1e-6, self.offset)
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1.0 + self.weight.float())).to(x.dtype) if self.offset else self.weight * y.to(x.dtype)


class FeedForward(nn.Module):
    """A gated feed-forward block.

    Args:
        inner: its width, where that is not the configuration's.
    """

    def __init__(self, config: Config, family: Family, dtype: torch.dtype, inner: int | None = None) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, inner or config.intermediate_size
        bias = bool(getattr(config, "mlp_bias", False))
        if family.joined:
            self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias, dtype=dtype)
        else:
            self.gate_proj = Linear(hidden, inner, bias=bias, dtype=dtype)
            self.up_proj = Linear(hidden, inner, bias=bias, dtype=dtype)
        self.down_proj = Linear(inner, hidden, bias=bias, dtype=dtype)
        self.silu = "gelu" not in str(getattr(config, "hidden_activation", None) or config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return self._down(up * F.silu(gate))
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self._down(gated(gate, up) if self.silu else self.act_fn(gate) * up)

    def act_fn(self, x: Tensor) -> Tensor:
        """What stands between the maps, by the name that adapters of whole blocks know."""
        return F.silu(x) if self.silu else F.gelu(x, approximate="tanh")

    def _down(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(x)
        return y
