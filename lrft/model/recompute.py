"""Which layers of a model are computed again in the backward pass, instead of keeping what they computed."""

from __future__ import annotations

from torch import nn

from lrft.model.hf import HF
from lrft.model.text_part import parts_aside, text_model
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError


def recomputable(hf: HF) -> list[nn.Module]:
    """The layers that can be computed again one by one, in their order; none in code that switches all at once.

    Layers of an encoder of images, which text never runs through, are none of them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    whole = hf.get_submodule(text_model(hf)) if parts_aside(hf) else hf
    for module in whole.modules():  # parents come before what they hold
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def with_layers_kept(section: ModelSection) -> ModelSection:
    """The section with no layer recomputed where it is left to the memory there is, which is not known yet."""
    auto = section.activation_checkpointing == "auto"
    return section.model_copy(update={"activation_checkpointing": False}) if auto else section


def recompute(hf: HF, count: int) -> None:
    """Compute the first `count` layers again in the backward pass, and no other.

    The first are the last that it reaches: what the others kept is freed by then.

    Raises:
        RecipeError: the model's code has no way to do so.
    """
    if not count:
        return
    try:
        # The reentrant kind drops the graph of routed adapters' penalties without a word.
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise RecipeError(
            f"{type(hf).__name__} cannot compute its layers again; write false, and a smaller train.batch_size",
            "model.activation_checkpointing",
        ) from None
    for layer in recomputable(hf)[count:]:
        for module in layer.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", False)  # noqa: B010 (a flag, where mypy sees a module)
