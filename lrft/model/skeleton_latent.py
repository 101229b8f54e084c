"""Attention over compressed keys and values (DeepSeek), as `lrft.model.skeleton` runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.model.skeleton_attention import attention_of
from lrft.model.skeleton_families import Family
from lrft.model.skeleton_parts import Config, Linear, Norm
from lrft.ops.attention import Documents
from lrft.ops.attention_blocks import Rule


class Latent(nn.Module):
    """Queries in full or from a compressed row, keys and values from another; one rotated key for all heads."""

    def __init__(self, config: Config, family: Family, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.turned, self.plain, self.value = (
            config.qk_rope_head_dim,
            config.qk_nope_head_dim,
            config.v_head_dim,
        )
        bias = bool(getattr(config, "attention_bias", False))
        queries, inner = heads * (self.plain + self.turned), getattr(config, "q_lora_rank", None)
        if inner:
            self.q_a_proj = Linear(hidden, inner, bias=bias, dtype=dtype)
            self.q_a_layernorm = Norm(inner, dtype, False)
            self.q_b_proj = Linear(inner, queries, bias=False, dtype=dtype)
        else:
            self.q_proj = Linear(hidden, queries, bias=False, dtype=dtype)
        self.inner = config.kv_lora_rank
        self.kv_a_proj_with_mqa = Linear(hidden, self.inner + self.turned, bias=bias, dtype=dtype)
        self.kv_a_layernorm = Norm(self.inner, dtype, False)
        self.kv_b_proj = Linear(self.inner, heads * (self.plain + self.value), bias=False, dtype=dtype)
        self.o_proj = Linear(heads * self.value, hidden, bias=bias, dtype=dtype)
        self.heads, self.config = heads, config
        self.rule = Rule((self.plain + self.turned) ** -0.5)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        """(B, L, hidden) -> (B, L, hidden)."""
        q = self._queries(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        still, moved = q.split((self.plain, self.turned), dim=-1)
        row, key = self.kv_a_proj_with_mqa(x).split((self.inner, self.turned), dim=-1)
        cos, sin = (part[..., : self.turned // 2].unsqueeze(1) for part in angles)
        moved, key = in_halves(moved, cos, sin), in_halves(key.unsqueeze(1), cos, sin)
        q = torch.cat([still, moved], dim=-1)
        # Seen as of one head, which the product with it cannot make again of what the norm keeps.
        row = self.kv_a_layernorm(row).unsqueeze(1)
        pairs = self.kv_b_proj(row).squeeze(1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = pairs.split((self.plain, self.value), dim=-1)
        k = torch.cat([k, key.expand(-1, self.heads, -1, -1)], dim=-1)
        attend = attention_of(self.config._attn_implementation)
        y: Tensor = self.o_proj(attend(q, k, v, documents, self.rule).flatten(-2))
        return y

    def _queries(self, x: Tensor) -> Tensor:
        y: Tensor
        if hasattr(self, "q_proj"):
            y = self.q_proj(x)
            return y
        y = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return y


def in_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """X rotated by angles of half its width, as transformers writes it out."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
