"""The layers of a decoder from its configuration alone, run on tensors without storage to count what they keep.

The families whose layers are a gated feed-forward block beside a rotated attention are described here by what differs
between them; `tests/model/test_skeleton.py` compares names, shapes and kept bytes with transformers' own models.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.model.skeleton_attention import attention_of
from lrft.model.skeleton_families import FAMILIES, Family
from lrft.ops.attention import Documents
from lrft.ops.attention_blocks import Rule
from lrft.ops.elementwise import gated, rms_norm, rotated


class Skeleton(nn.Module):
    """A causal language model of a known family with every parameter on the meta device, named as transformers does.

    Args:
        config: of config.json, one that `why_no_skeleton` has nothing against.
        dtype: of the parameters.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        family = FAMILIES[config["model_type"]]
        tied = config.get("tie_word_embeddings")
        self.config = _Config({**config, "tie_word_embeddings": family.tied if tied is None else tied})
        with torch.device("meta"):
            self.model = _Body(self.config, family, dtype)
            hidden, words = self.config.hidden_size, self.config.vocab_size
            self.lm_head = _Linear(hidden, words, bias=False, dtype=dtype)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def base_model(self) -> nn.Module:
        """Everything before the head."""
        return self.model

    @property
    def softcap(self) -> float | None:
        """The head's c * tanh(logits / c), or None."""
        cap: float | None = getattr(self.config, "final_logit_softcapping", None)
        return cap

    def get_input_embeddings(self) -> nn.Embedding:
        """The input embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def set_attn_implementation(self, implementation: str) -> None:
        """Attend by another backend."""
        self.config._attn_implementation = implementation


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing to draw."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing to draw."""


class _Config(SimpleNamespace):
    """A configuration as transformers' objects answer for it."""

    _attn_implementation = "segmented"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(**settings)
        if not getattr(self, "head_dim", None):
            self.head_dim = self.hidden_size // self.num_attention_heads

    def get_text_config(self) -> _Config:
        """Itself: there is no other part."""
        return self


class _Body(nn.Module):
    def __init__(self, config: _Config, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Layer(config, family, dtype, index) for index in layers)
        self.norm = Norm(config.hidden_size, dtype, family.offset)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        raise NotImplementedError("the layers of a skeleton are run one by one")


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


class Layer(nn.Module):
    """One decoder layer."""

    input_layernorm: Norm
    post_attention_layernorm: Norm
    pre_feedforward_layernorm: Norm
    post_feedforward_layernorm: Norm

    def __init__(self, config: _Config, family: Family, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if family.four else []
        for name in names:
            setattr(self, name, Norm(config.hidden_size, dtype, family.offset))
        self.self_attn = _Attention(config, family, dtype, index)
        self.mlp = _FeedForward(config, family, dtype)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        """(B, L, hidden) -> (B, L, hidden)."""
        attended = self.self_attn(self.input_layernorm(x), angles, documents)
        if not hasattr(self, "pre_feedforward_layernorm"):
            x = x + attended
            y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return y
        x = x + self.post_attention_layernorm(attended)
        y = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return y


class _Attention(nn.Module):
    def __init__(self, config: _Config, family: Family, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.head_dim
        heads, pairs = config.num_attention_heads, config.num_key_value_heads
        told = bool(getattr(config, "attention_bias", False))
        bias = told if family.bias is None else family.bias
        if family.joined:
            self.qkv_proj = _Linear(hidden, (heads + 2 * pairs) * width, bias=bias, dtype=dtype)
        else:
            self.q_proj = _Linear(hidden, heads * width, bias=bias, dtype=dtype)
            self.k_proj = _Linear(hidden, pairs * width, bias=bias, dtype=dtype)
            self.v_proj = _Linear(hidden, pairs * width, bias=bias, dtype=dtype)
        self.o_proj = _Linear(heads * width, hidden, bias=told and family.bias is None, dtype=dtype)
        if family.headed:
            self.q_norm, self.k_norm = Norm(width, dtype, False), Norm(width, dtype, False)
        self.heads, self.pairs, self.width, self.config = heads, pairs, width, config
        sliding = family.windows == "all" or (family.windows == "even" and index % 2 == 0)
        self.rule = Rule(
            width**-0.5,
            (getattr(config, "sliding_window", None) or 0) if sliding else 0,
            getattr(config, "attn_logit_softcapping", None),
        )

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in self._parts(x))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = (part.unsqueeze(1) for part in angles)
        q, k = rotated(q.transpose(1, 2), cos, sin), rotated(k.transpose(1, 2), cos, sin)
        attend = attention_of(self.config._attn_implementation)
        y: Tensor = self.o_proj(attend(q, k, v.transpose(1, 2), documents, self.rule).flatten(-2))
        return y

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not hasattr(self, "qkv_proj"):
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        own, shared = self.heads * self.width, self.pairs * self.width
        q, k, v = self.qkv_proj(x).split((own, shared, shared), dim=-1)
        return q, k, v


class _FeedForward(nn.Module):
    def __init__(self, config: _Config, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        bias = bool(getattr(config, "mlp_bias", False))
        if family.joined:
            self.gate_up_proj = _Linear(hidden, 2 * inner, bias=bias, dtype=dtype)
        else:
            self.gate_proj = _Linear(hidden, inner, bias=bias, dtype=dtype)
            self.up_proj = _Linear(hidden, inner, bias=bias, dtype=dtype)
        self.down_proj = _Linear(inner, hidden, bias=bias, dtype=dtype)
        self.silu = "gelu" not in str(getattr(config, "hidden_activation", None) or config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return self._down(up * F.silu(gate))
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self._down(gated(gate, up) if self.silu else F.gelu(gate, approximate="tanh") * up)

    def _down(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(x)
        return y
