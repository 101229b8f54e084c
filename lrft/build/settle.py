"""What a model computes rightly with, asked of it before or after its layers are stored."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from lrft.build.steps import drawing
from lrft.core.adapted import adapted, adapters_off
from lrft.model.backend import check_mask, settle_attention, why_padded
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe

if TYPE_CHECKING:
    from lrft.build.adapt import Adaptation


def bare(model: CausalLM) -> AbstractContextManager[None]:
    """The model with its adapters off, unless they are the weights themselves."""
    own = any("own_weights" in module.adapter.provides for _, module in adapted(model.hf))
    return nullcontext() if own else adapters_off(model.hf)


def settled_first(
    asked: Recipe, adaptation: Adaptation, device: torch.device, trains: bool, measures: bool, streamed: bool
) -> Recipe:
    """What `settled` finds before anything is on the model, whose backend may be one that only runs on the GPU.

    Args:
        measures: the model is going there as it is, to be measured.
        streamed: its weights are not read yet.
    """
    model = adaptation.model
    moved = model.flattens and device.type != "cpu"
    if streamed or (moved and not measures):  # asked later, of the layers that replace these
        return with_packing(asked, bool(asked.train.packing))
    if moved:
        model.hf.to(device)
    return settled(asked, adaptation, device, trains)


def settled(recipe: Recipe, adaptation: Adaptation, device: torch.device, trains: bool) -> Recipe:
    """Find what the model computes rightly with; the recipe that says whether rows are packed."""
    model = adaptation.model
    wanted = True if recipe.model.compile and recipe.train.packing is None else recipe.train.packing
    wanted = wanted if drawing(recipe) is None else False  # what is drawn is joined, and never packed before
    found = settle_attention(model, recipe.model, device, wanted)
    adaptation.packing, adaptation.notes = found.packing, [found.note] if found.note else []
    if trains:
        several = recipe.train.batch_size > 1 or drawing(recipe) is not None
        masked = found.packing or several  # else a row is one document, without padding
        check_mask(model, recipe.model, device, recipe.train.max_length if masked else 0)
    if trains and not found.told:
        why = why_padded(model, recipe.model, found.packing)
        adaptation.joined = not why
        if why and not found.packing:
            adaptation.notes.append(f"train.packing: false, and rows are padded ({why})")
    return with_packing(recipe, adaptation.packing)


def with_packing(recipe: Recipe, packing: bool) -> Recipe:
    """The recipe with `train.packing` settled."""
    train = recipe.train.model_copy(update={"packing": packing})
    return recipe.model_copy(update={"train": train})
