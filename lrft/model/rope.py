"""The positions of a model: how many it has, and how its rotary ones are scaled to reach further."""

from __future__ import annotations

from typing import Any

from lrft.model.hf import ModelConfig, TextConfig
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError, first_line


def positions_of(config: TextConfig) -> int | None:
    """How many positions a language model has, which MPT has another name for; None of one without a limit."""
    found: int | None = getattr(config, "max_position_embeddings", None) or getattr(
        config, "max_seq_len", None
    )
    return found


def stretch(config: ModelConfig, section: ModelSection) -> None:
    """Put `model.rope_scaling` and `model.context` into a configuration, in place, as transformers reads them.

    Raises:
        RecipeError: the model has no rotary positions that are its own to scale, or they would not reach so far.
    """
    if section.rope_scaling is None and section.context is None:
        return
    text: Any = config.get_text_config()
    key = "model.rope_scaling" if section.rope_scaling is not None else "model.context"
    rotary = getattr(text, "rope_parameters", None)
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if not rotary or positions is None or "rope_theta" not in rotary:
        what = "rotary positions of several kinds" if rotary else "no rotary positions"
        raise RecipeError(f"{type(config).__name__} has {what}, which cannot be stretched; remove it", key)
    if section.context is not None and section.context < positions:
        raise RecipeError(
            f"the model has {positions} positions already; write more, or remove it", "model.context"
        )
    if section.rope_scaling is None:
        text.max_position_embeddings = section.context
        return
    _scale(text, rotary, positions, section)
    try:
        type(text).from_dict(text.to_dict())
    except Exception as error:  # whatever a family's own checks raise, which run as a merged model is opened
        raise RecipeError(
            f"{type(config).__name__} takes no positions scaled so ({first_line(error)}); remove it", key
        ) from None


def _scale(text: Any, rotary: dict[str, Any], positions: int, section: ModelSection) -> None:
    scaling = section.rope_scaling
    assert scaling is not None
    if rotary.get("rope_type", "default") != "default":
        message = f"the model scales its positions already ({rotary['rope_type']}), to {positions}; remove it"
        raise RecipeError(message, "model.rope_scaling")
    reach = int(positions * scaling.factor)
    if section.context is not None and (scaling.type == "dynamic" or section.context > reach):
        message = (
            "dynamic scaling has no length of its own; leave it out"
            if scaling.type == "dynamic"
            else f"factor {scaling.factor:g} reaches {reach} positions from {positions}; write at most that"
        )
        raise RecipeError(message, "model.context")
    kept = {name: rotary[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    text.rope_parameters = {**kept, "rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type == "yarn":
        text.rope_parameters["original_max_position_embeddings"] = positions
    if getattr(text, "head_dim", 0) is None:  # left out, and worked out wherever transformers does not scale
        text.head_dim = text.hidden_size // text.num_attention_heads
    if scaling.type != "dynamic":  # which scales from where the model's own positions end
        text.max_position_embeddings = section.context or reach


def longer(config: ModelConfig, section: ModelSection) -> str:
    """What to write for rows beyond the model's positions, as the end of a sentence; empty where nothing helps."""
    text: Any = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    if section.rope_scaling is not None and section.rope_scaling.type == "dynamic":
        return (
            ", as the positions of dynamic scaling beyond that follow the longest text seen so far and not the row; or "
            "write model.rope_scaling: {type: yarn, factor: ...}"
        )
    if "rope_theta" not in rotary:
        return ""
    if rotary.get("rope_type", "default") != "default":
        return ", or raise model.context, to positions that it has never seen"
    return ", or write model.rope_scaling: {type: yarn, factor: ...}"
