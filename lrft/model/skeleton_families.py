"""The families whose layers `lrft.model.skeleton` knows, by what differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lrft.registry.json import Json


class Family(NamedTuple):
    """What a family's layers do beside or instead of Llama's.

    Attributes:
        tied: whether head and embedding are one where the configuration is silent.
        bias: of queries, keys and values; None where `attention_bias` says, of the output too.
        offset: norms multiply by 1 + weight, in float32 (Gemma).
        four: norms stand before and after each block.
        joined: queries, keys and values are one layer, gate and up another.
        headed: queries and keys are normed head by head.
        windows: which layers see a sliding window: `all`, `even` or `none`.
    """

    tied: bool = False
    bias: bool | None = False
    offset: bool = False
    four: bool = False
    joined: bool = False
    headed: bool = False
    windows: str = "none"


FAMILIES = {
    "llama": Family(bias=None),
    "mistral": Family(windows="all"),
    "qwen2": Family(bias=True),
    "qwen3": Family(bias=None, headed=True),
    "gemma2": Family(tied=True, bias=None, offset=True, four=True, windows="even"),
    "phi3": Family(joined=True, windows="all"),
}
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# What would change a layer that is described here: a configuration that has one of them is not of these.
FOREIGN = ("attention_dropout", "resid_pdrop", "embd_pdrop", "num_local_experts", "use_sliding_window")


def why_no_skeleton(config: Mapping[str, Json]) -> str:
    """What of a configuration the skeleton does not know, or an empty string."""
    family = config.get("model_type")
    if family not in FAMILIES:
        return f"model_type {family}"
    missing = [key for key in NEEDED if not isinstance(config.get(key), int)]
    if missing:
        return f"no {missing[0]} in the configuration"
    return next((f"{key} {config[key]}" for key in FOREIGN if config.get(key)), "")
