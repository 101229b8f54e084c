"""What a micro-batch keeps for the backward pass, from the model's configuration and the lengths of its documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lrft.build.resident import inputs_held
from lrft.build.steps import full_shape
from lrft.data.steps import Shape
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import TextConfig
from lrft.model.load import DTYPES
from lrft.ops.attention_blocks import BLOCK, LONG, met_pairs
from lrft.recipe.schema import Recipe

STATES = ("linear_attention", "mamba", "recurrent", "hybrid")  # kinds of layers, as configurations name them


class Activations(NamedTuple):
    """Bytes of the micro-batch that takes most.

    Attributes:
        blocks: inputs that the layers save, from the widths of the blocks: an estimate.
        attention: what grows with the square of a length, and the room that blocks of long documents are computed in.
    """

    blocks: int
    attention: int


def activation_bytes(
    recipe: Recipe, model: CausalLM, shapes: Iterable[Shape] = (), recomputed: int | None = None
) -> Activations:
    """Bytes of the largest of `shapes`; without any, of rows that are one document of `train.max_length` each.

    Args:
        recomputed: layers whose activations are not kept; by default all or none, as the recipe says.
    """
    layers = model.hf.config.get_text_config().num_hidden_layers
    if recomputed is None:
        recomputed = layers if recipe.model.activation_checkpointing is True else 0
    recomputed = min(recomputed, layers)
    full = full_shape(recipe)
    different = set(shapes) or {full}
    return max((_activations(recipe, model, shape, recomputed) for shape in different), key=sum)


def _activations(recipe: Recipe, model: CausalLM, shape: Shape, recomputed: int) -> Activations:
    config = model.hf.config.get_text_config()
    item = DTYPES[recipe.model.dtype].itemsize
    tokens, hidden, layers = shape.rows * shape.length, config.hidden_size, config.num_hidden_layers
    wide = feed_forward_width(config)
    block = item * (12 * hidden + 4 * wide) + 16 * hidden  # saved inputs, float32 copies of the norms
    kept, room = _attention(model.attention, config, item, shape)
    # Of a layer that is computed again its input is kept. They are the first, so by then the others have given up
    # what they kept, and only where there are no others does computing it again need room of its own.
    whole, again = layers - recomputed, min(recomputed, 1)
    attentions = max(-(-attention_layers(config) * whole // layers), again)
    blocks = max(whole, again) * block + inputs_held(recipe, recomputed) * hidden * item
    return Activations(tokens * blocks, attentions * kept + room)


def _attention(backend: str, config: TextConfig, item: int, shape: Shape) -> tuple[int, int]:
    """Bytes that one attention keeps beside queries, keys, values and output, and those it needs while it computes."""
    heads = getattr(config, "num_attention_heads", None) or 0
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    dropped = bool(getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0))
    square = shape.rows * shape.length**2
    # Softmax in float32, and rounded where that is another tensor or in part dropped; the draws; tanh of the cap.
    pieces = 4 + (2 * item if dropped else item % 4) + item * capped
    if backend == "eager":
        return heads * square * pieces, 0
    if backend != "segmented":
        return (square * item, 0) if backend == "sdpa" else (0, 0)  # the mask as numbers, one for all heads
    short = [n for n in shape.documents if n <= LONG]
    if capped or dropped:
        kept = sum(n * n for n in short) * (heads * pieces + 1)
    else:
        kept = sum(met_pairs(n) for n in short) * heads * item
    longest = max(shape.documents, default=0)
    if longest <= LONG:
        return kept, 0
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    pairs = getattr(config, "num_key_value_heads", None) or heads
    # In float32 on some processors (`lrft.ops.products`); a plan is the same on all of them.
    blocks = (2 + capped + dropped) * heads * BLOCK * max(4, item)  # of scores and their gradients
    return kept, longest * (blocks + 2 * pairs * width * max(4, item))


def feed_forward_width(config: TextConfig) -> int:
    """Channels that a token goes through in a feed-forward block; of a mixture, those of the experts it is sent to."""
    found = (
        getattr(config, "intermediate_size", None)
        or getattr(config, "ffn_dim", None)
        or 4 * config.hidden_size
    )
    dense = max(found) if isinstance(found, list) else int(found)  # of some a number for every layer
    chosen = getattr(config, "num_experts_per_tok", None) or 0
    each = getattr(config, "moe_intermediate_size", None) or dense
    beside = getattr(config, "shared_expert_intermediate_size", None) or getattr(
        config, "shared_intermediate_size", 0
    )
    return max(dense, chosen * each + (beside or (getattr(config, "n_shared_experts", None) or 0) * each))


def attention_layers(config: TextConfig) -> int:
    """Layers that have an attention, where the configuration names the kinds of its layers; else all.

    In a `hybrid` layer one stands beside what carries a state.
    """
    kinds = _kinds(config)
    if not kinds:
        return int(config.num_hidden_layers)
    return sum(kind == "hybrid" or (kind != "linear_attention" and "attention" in kind) for kind in kinds)


def not_estimated(config: TextConfig) -> str:
    """What the estimate leaves out, in words; empty where that is nothing.

    Layers with a state keep what their kernels are made for, or in plain code several times the state of every token.
    """
    count = sum(kind in STATES for kind in _kinds(config))
    return (
        f"{count} layers carry a state along the row, and what they keep of it for the backward pass is not in this "
        "estimate, which may be several times too small"
        if count
        else ""
    )


def _kinds(config: TextConfig) -> list[str]:
    return getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
