"""A model's configuration as GGUF metadata; what llama.cpp would compute otherwise is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrft.export.gguf_names import Names
from lrft.registry.errors import UsageError

ROPES = ("default", "linear", "llama3")


def write_config(writer: Any, names: Names, rows: int) -> list[str]:
    """Write the architecture's numbers; returns what the user has to be told of them.

    Args:
        writer: a `gguf.GGUFWriter`.
        rows: of the input embedding, which a tokenizer may not fill.

    Raises:
        UsageError: a setting that llama.cpp's architecture does not have.
    """
    config = names.config
    check_config(names)
    head = head_size(config)
    writer.add_vocab_size(rows)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(names.gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            getattr(writer, f"add_{key}")(float(getattr(config, key)))
    return _write_context(writer, names)


def check_config(names: Names) -> None:
    """Refuse what the architecture computes otherwise in llama.cpp.

    Raises:
        UsageError: names the setting.
    """
    config, family = names.config, names.family
    own = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    odd: dict[str, object] = {}
    if own != family.activation:
        odd["hidden_act"] = own
    if config.rope_parameters.get("rope_type") not in ROPES:
        odd["rope_type"] = config.rope_parameters.get("rope_type")
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        odd["partial_rotary_factor"] = config.rope_parameters["partial_rotary_factor"]
    if getattr(config, "query_pre_attn_scalar", None) not in (None, _scalar(config)):
        odd["query_pre_attn_scalar"] = config.query_pre_attn_scalar
    if _windows(config) and not _alternates(config) and family.arch != "llama":
        odd["layer_types"] = config.layer_types
    for key, value in odd.items():
        raise UsageError(
            f"{names.command}: config.json says {key}: {value}, which llama.cpp's {family.arch} does not compute; "
            "`lrft merge` writes the model for transformers"
        )


def rope_factors(names: Names, inv_freq: Tensor) -> Tensor | None:
    """What llama.cpp divides the frequencies by, (head size / 2) float32, where they are scaled one by one; else None.

    Args:
        inv_freq: the frequencies that transformers computes with.
    """
    rope = names.config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    size = head_size(names.config)
    plain: Tensor = float(rope["rope_theta"]) ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / inv_freq.double().cpu()).float()


def head_size(config: Any) -> int:
    """Numbers of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _scalar(config: Any) -> int:
    """What llama.cpp's gemma2 divides the scores by the root of: by the number of layers it knows the one exception."""
    largest = config.num_hidden_layers == 46
    return int(config.hidden_size // config.num_attention_heads) if largest else head_size(config)


def _write_context(writer: Any, names: Names) -> list[str]:
    config = names.config
    window, length = getattr(config, "sliding_window", None), config.max_position_embeddings
    if _windows(config) and _alternates(config):
        writer.add_sliding_window(window)
    elif _windows(config) and window < length:
        writer.add_context_length(window)
        return [
            f"llama.cpp's {names.family.arch} has no sliding window, so the file's context ends at {window} tokens"
        ]
    writer.add_context_length(length)
    return []


def _windows(config: Any) -> bool:
    """Whether some layer sees a window alone."""
    if (
        getattr(config, "sliding_window", None) is None
        or getattr(config, "use_sliding_window", True) is False
    ):
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or "sliding_attention" in kinds


def _alternates(config: Any) -> bool:
    """Whether every second layer sees everything, beginning with one that does not: what llama.cpp's gemma2 does."""
    kinds = getattr(config, "layer_types", None) or []
    wanted = [("sliding_attention", "full_attention")[k % 2] for k in range(len(kinds))]
    return bool(kinds) and kinds == wanted
