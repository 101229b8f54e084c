"""The layers of a decoder from its configuration alone, run on tensors without storage to count what they keep.

The families whose layers are a gated feed-forward block beside a rotated attention are described here by what differs
between them; `tests/model/test_skeleton.py` compares names, shapes and kept bytes with transformers' own models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.skeleton_attention import attention_of
from lrft.model.skeleton_experts import Mixture, is_mixed
from lrft.model.skeleton_families import FAMILIES, Family
from lrft.model.skeleton_latent import Latent, in_halves
from lrft.model.skeleton_parts import Config, Embedding, FeedForward, Linear, Norm
from lrft.ops.attention import Documents
from lrft.ops.attention_blocks import Rule
from lrft.ops.elementwise import rotated


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
        tied = family.tied if tied is None else tied
        self.config = Config({**config, "tie_word_embeddings": tied}, family)
        with torch.device("meta"):
            self.model = _Body(self.config, family, dtype)
            hidden, words = self.config.hidden_size, self.config.vocab_size
            self.lm_head = Linear(hidden, words, bias=False, dtype=dtype)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def mixed(self) -> bool:
        """Whether some layers are mixtures of experts."""
        return any(isinstance(layer.mlp, Mixture) for layer in self.model.layers)

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


class _Body(nn.Module):
    def __init__(self, config: Config, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Layer(config, family, dtype, index) for index in layers)
        self.norm = Norm(config.hidden_size, dtype, family.offset)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        raise NotImplementedError("the layers of a skeleton are run one by one")


class Layer(nn.Module):
    """One decoder layer."""

    input_layernorm: Norm
    post_attention_layernorm: Norm
    pre_feedforward_layernorm: Norm
    post_feedforward_layernorm: Norm

    def __init__(self, config: Config, family: Family, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if family.four else []
        for name in names:
            setattr(self, name, Norm(config.hidden_size, dtype, family.offset))
        self.self_attn = (Latent if family.latent else _Attention)(config, family, dtype, index)
        mixed = is_mixed(config, family, index)
        self.mlp = Mixture(config, family, dtype) if mixed else FeedForward(config, family, dtype)

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
    def __init__(self, config: Config, family: Family, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.head_dim
        heads, pairs = config.num_attention_heads, config.num_key_value_heads
        told = bool(getattr(config, "attention_bias", False))
        bias = bool(getattr(config, family.bias, True)) if isinstance(family.bias, str) else family.bias
        bias = told if bias is None else bias
        if family.joined:
            self.qkv_proj = Linear(hidden, (heads + 2 * pairs) * width, bias=bias, dtype=dtype)
        else:
            self.q_proj = Linear(hidden, heads * width, bias=bias, dtype=dtype)
            self.k_proj = Linear(hidden, pairs * width, bias=bias, dtype=dtype)
            self.v_proj = Linear(hidden, pairs * width, bias=bias, dtype=dtype)
        self.o_proj = Linear(heads * width, hidden, bias=told and family.bias is None, dtype=dtype)
        if family.headed:
            sizes = (heads * width, pairs * width) if family.headed == "together" else (width, width)
            self.q_norm, self.k_norm = (Norm(size, dtype, False) for size in sizes)
        self.sinks = (
            nn.Parameter(torch.empty(heads, dtype=dtype), requires_grad=False) if family.sinks else None
        )
        self.heads, self.pairs, self.width, self.config = heads, pairs, width, config
        self.together = family.headed == "together"
        window = (getattr(config, "sliding_window", None) or 0) if _slides(config, family, index) else 0
        self.rule = Rule(width**-0.5, window, getattr(config, "attn_logit_softcapping", None))

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        q, k, v = self._parts(x)
        if self.together:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in (q, k, v))
        if hasattr(self, "q_norm") and not self.together:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = (part.unsqueeze(1) for part in angles)
        turn = rotated if cos.shape[-1] == self.width else in_halves
        q, k = turn(q.transpose(1, 2), cos, sin), turn(k.transpose(1, 2), cos, sin)
        attend = attention_of(self.config._attn_implementation)
        rule = self.rule if self.sinks is None else replace(self.rule, sinks=self.sinks)
        y: Tensor = self.o_proj(attend(q, k, v.transpose(1, 2), documents, rule).flatten(-2))
        return y

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not hasattr(self, "qkv_proj"):
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        own, shared = self.heads * self.width, self.pairs * self.width
        q, k, v = self.qkv_proj(x).split((own, shared, shared), dim=-1)
        return q, k, v


def _slides(config: Config, family: Family, index: int) -> bool:
    """Whether the layer sees a sliding window."""
    kinds = getattr(config, "layer_types", None)
    if family.windows == "even" and kinds:
        return bool(kinds[index] == "sliding_attention")
    return family.windows == "all" or (family.windows == "even" and index % 2 == 0)
