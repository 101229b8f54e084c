"""A causal language model of transformers, as far as it is used: what mypy sees in place of the library's own class.

Transformers gives its models their methods by mixins that no annotation names together, and leaves many untyped.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lrft.registry.json import Json

if TYPE_CHECKING:
    from transformers import GenerationConfig


class TextConfig(Protocol):
    """The settings of the language model, of a model that may see and hear as well."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    vocab_size: int

    def to_dict(self) -> dict[str, Json]: ...


class ModelConfig(TextConfig, Protocol):
    """The settings of the whole model."""

    _attn_implementation: str
    architectures: list[str] | None
    name_or_path: str
    dtype: torch.dtype
    quantization_config: Mapping[str, Json]

    def get_text_config(self) -> TextConfig: ...

    def save_pretrained(self, folder: str | PathLike[str]) -> None: ...


class Logits(Protocol):
    """What a forward pass gives."""

    logits: Tensor


class HF(nn.Module):
    """The model; this class is never made."""

    config: ModelConfig
    name_or_path: str
    generation_config: GenerationConfig
    base_model: nn.Module
    _supports_sdpa: bool

    if TYPE_CHECKING:

        def __call__(self, *, input_ids: Tensor, use_cache: bool) -> Logits: ...

        def get_input_embeddings(self) -> nn.Embedding: ...

        def get_output_embeddings(self) -> nn.Linear | None: ...

        def set_attn_implementation(self, implementation: str) -> None: ...

        def num_parameters(self) -> int: ...

        def resize_token_embeddings(self, rows: int, *, mean_resizing: bool) -> nn.Embedding: ...

        def gradient_checkpointing_enable(
            self, gradient_checkpointing_kwargs: Mapping[str, bool]
        ) -> None: ...

        def save_pretrained(self, folder: str | PathLike[str], *, max_shard_size: str = ...) -> None: ...

        # What comes back depends on a setting: token ids (B, L), or an object that holds them and more.
        def generate(self, **settings: object) -> Any: ...


def head_of(hf: HF) -> nn.Linear:
    """The map from hidden states to logits; a model without one is refused when it is loaded."""
    head = hf.get_output_embeddings()
    assert head is not None, "a model without a head is refused when it is loaded"
    return head
