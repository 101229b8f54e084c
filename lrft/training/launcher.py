"""What `accelerate launch` asks of a script with FSDP, in the terms of a recipe."""

from __future__ import annotations

import os
from dataclasses import replace

from lrft.core.notes import say
from lrft.recipe.check import check
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import flat
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import dotted
from lrft.registry.errors import Problem, RecipeError

KEY = "train.shard_base"
ASKS = "ACCELERATE_USE_FSDP"
TAKEN = "LRFT_SHARDS_AS_LAUNCHED"
ORIGIN = "accelerate's FSDP"
# Settings of accelerate's fsdp_config that would change what is in memory, and what stands for them here.
REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "the parts of a base stay on their devices; write false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "what a layer begins with stays on its device; write false",
}
RECOMPUTES = "FSDP_ACTIVATION_CHECKPOINTING"
RESHARDS = "FSDP_RESHARD_AFTER_FORWARD"


def as_launched(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with `train.shard_base: true` where the launcher asks for FSDP 2, else as it is.

    It is what FSDP would do for frozen weights, so accelerate itself, and what else looks at its variable, is not asked
    any more. The rest of its configuration says how parameters are wrapped, fetched and saved; here the stored bytes
    of every frozen map are cut alike, gathered for a product, and checkpoints are whole.

    Raises:
        RecipeError: another version of FSDP, a setting that is not here, or a recipe whose base cannot be cut.
    """
    recipe = sharded_as_launched(loaded.recipe)
    if recipe is loaded.recipe:
        return loaded
    origins = {dotted(keys): loaded.origins.get(dotted(keys), ORIGIN) for keys in flat(recipe)}
    return replace(loaded, recipe=recipe, origins={**origins, KEY: ORIGIN})


def sharded_as_launched(recipe: Recipe) -> Recipe:
    """See `as_launched`."""
    if _is_on(ASKS):
        _check_settings(recipe)
        os.environ[ASKS] = "false"
        os.environ[TAKEN] = "true"
    if not _is_on(TAKEN) or recipe.train.shard_base:
        return recipe
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"shard_base": True})})
    if problems := check(changed):
        told = [Problem(p.key, f"{ORIGIN} stands for {KEY}: true, and {p.message}") for p in problems]
        raise RecipeError(told)
    return changed


def _check_settings(recipe: Recipe) -> None:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise RecipeError(
            f"{ORIGIN} is asked for in version {version}; write fsdp_version: 2 in its configuration", KEY
        )
    for name, why in REFUSED.items():
        if _is_on(name):
            raise RecipeError(f"{ORIGIN} is asked for with {name.lower()}, and {why}", KEY)
    if _is_on(RECOMPUTES) and not recipe.model.activation_checkpointing:
        raise RecipeError(
            f"{ORIGIN} is asked for with {RECOMPUTES.lower()}; write true here, which recomputes layers",
            "model.activation_checkpointing",
        )
    if not _is_on(RESHARDS, "true"):
        say(f"{ORIGIN}: weights are dropped after every product, whatever {RESHARDS.lower()} says")


def _is_on(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() not in ("", "0", "false", "no_reshard")
