"""The families whose layers `lrft.model.skeleton` knows, by what differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lrft.registry.json import Json


class Experts(NamedTuple):
    """What the mixtures of a family are.

    Attributes:
        width: key of an expert's inner width.
        router: what the layer is called that chooses.
        shared: the block that every token goes through too, where there is one, by its name.
        gated: that block's output is scaled by a gate of its own.
        flat: that block is given the rows of tokens, a view of the norm's result, and not that itself.
        wide: the router's weights stay in float32.
        normed: the weights of a token's experts are divided by their sum; None where `norm_topk_prob` says.
        turned: matrices are stored (in, out), with biases, gate and up interleaved (gpt-oss).
    """

    width: str = "moe_intermediate_size"
    router: str = "gate"
    shared: str = ""
    gated: bool = False
    flat: bool = False
    wide: bool = False
    normed: bool | None = None
    turned: bool = False


class Family(NamedTuple):
    """What a family's layers do beside or instead of Llama's.

    Attributes:
        tied: whether head and embedding are one where the configuration is silent.
        bias: of queries, keys and values; None where `attention_bias` says, of the output too; or the key that says.
        offset: norms multiply by 1 + weight, in float32 (Gemma).
        four: norms stand before and after each block.
        joined: queries, keys and values are one layer, gate and up another.
        headed: queries and keys are normed, `apart` head by head, or `together`.
        windows: which layers see a sliding window: `all`, `even` (or as `layer_types` says) or `none`.
        sinks: every head has a score more, and angles are of half a head (gpt-oss).
        latent: keys and values come from a compressed row (DeepSeek).
        experts: of the layers that are mixtures.
    """

    tied: bool = False
    bias: bool | str | None = False
    offset: bool = False
    four: bool = False
    joined: bool = False
    headed: str = ""
    windows: str = "none"
    sinks: bool = False
    latent: bool = False
    experts: Experts | None = None


FAMILIES = {
    "llama": Family(bias=None),
    "mistral": Family(windows="all"),
    "qwen2": Family(bias=True),
    "qwen3": Family(bias=None, headed="apart"),
    "gemma2": Family(tied=True, bias=None, offset=True, four=True, windows="even"),
    "phi3": Family(joined=True, windows="all"),
    "mixtral": Family(windows="all", experts=Experts("intermediate_size", wide=True, normed=True)),
    "qwen2_moe": Family(bias="qkv_bias", experts=Experts(shared="shared_expert", gated=True, flat=True)),
    "qwen3_moe": Family(bias=None, headed="apart", experts=Experts()),
    "olmoe": Family(bias=None, headed="together", experts=Experts("intermediate_size")),
    "gpt_oss": Family(
        bias=None,
        windows="even",
        sinks=True,
        experts=Experts("intermediate_size", router="router", turned=True),
    ),
    "deepseek_v2": Family(latent=True, experts=Experts(shared="shared_experts", wide=True, normed=False)),
    "deepseek_v3": Family(latent=True, experts=Experts(shared="shared_experts", wide=True)),
}
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
LATENT = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # as families and versions call the experts
# What would change a layer that is described here: a configuration that has one of them is not of these.
FOREIGN = (
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "use_sliding_window",
    "router_jitter_noise",
    "clip_qkv",
)


def count_experts(config: Mapping[str, Json]) -> int:
    """How many experts a mixture has, 0 where the configuration has none."""
    found = next((config[key] for key in COUNTS if config.get(key)), 0)
    return found if isinstance(found, int) else 0


def shared_width(config: Mapping[str, Json]) -> int:
    """The inner width of the block that every token goes through beside its experts."""
    told, count, one = (
        config.get(key)
        for key in ("shared_expert_intermediate_size", "n_shared_experts", "moe_intermediate_size")
    )
    if isinstance(told, int):
        return told
    return count * one if isinstance(count, int) and isinstance(one, int) else 0


def why_no_skeleton(config: Mapping[str, Json]) -> str:
    """What of a configuration the skeleton does not know, or an empty string."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        return f"model_type {name}"
    family = FAMILIES[name]
    experts, needed = family.experts, list(NEEDED)
    needed += LATENT if family.latent else ()
    needed += () if experts is None else (experts.width, "num_experts_per_tok")
    missing = [key for key in needed if not isinstance(config.get(key), int)]
    if missing:
        return f"no {missing[0]} in the configuration"
    if (experts is not None) != (count_experts(config) > 0):
        return "no experts in the configuration" if experts else f"{count_experts(config)} experts"
    if experts is not None and experts.shared and not shared_width(config):
        return f"no width of {experts.shared} in the configuration"
    return next((f"{key} {config[key]}" for key in FOREIGN if config.get(key)), "")
