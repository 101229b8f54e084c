"""Adapters beneath the one that trains: read as `model.adapter` is, and kept beside the base, each with its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from lrft.build.earlier import Earlier, begin_with, read_earlier
from lrft.build.earlier_base import check_base
from lrft.core.adapted import Adapted, adapted
from lrft.core.block import AdaptedBlock
from lrft.core.less import changed
from lrft.core.params import Site
from lrft.core.stages import Plan
from lrft.model.causal_lm import CausalLM
from lrft.model.take_over import Trained, check_sites
from lrft.recipe.inside_sections import StackedAdapter
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json

KEY = "model.adapters"


def begin_on(recipe: Recipe, model: CausalLM, plan: Plan) -> tuple[dict[str, Json] | None, list[str]]:
    """Put adapters that were trained before beneath the one that trains, and into it; the record, and what to tell."""
    stacked, told = stack(recipe, model)
    origin: dict[str, Json] | None = None
    if recipe.model.adapter is not None:
        origin, more = begin_with(recipe, model, plan)
        told += more
    return ({**(origin or {}), "stacked": stacked} if stacked else origin), told


@torch.no_grad()
def stack(recipe: Recipe, model: CausalLM) -> tuple[list[Json], list[str]]:
    """Add every adapter of `model.adapters` to the base of the model; the record of them, and what to tell.

    The sum W + sum_t w_t delta_t is what trains is put on. It is in every checkpoint as what restarts move into a base
    is, so the run needs the adapters no longer.

    Raises:
        RecipeError: one cannot be read, is of another base, or changes what gets no adapter here.
    """
    if not recipe.model.adapters:
        return [], []
    sites = dict(adapted(model.hf))
    shapes = {name: module.adapter.site for name, module in sites.items()}
    records, told = list[Json](), list[str]()
    read = list(_read(recipe, shapes))  # each before any is added, as a change may depend on the weight
    for one, earlier in read:
        check_base(earlier, _naming(recipe, one), model)
    changes = [
        {name: _change(name, trained, sites[name]) for name, trained in earlier.given.items()}
        for _, earlier in read
    ]
    for (one, earlier), given in zip(read, changes, strict=True):
        for name, (A, B) in given.items():
            base = sites[name].base = changed(sites[name].base)
            base.add((A.to(model.device), one.weight * B.to(model.device)))
        records.append({**earlier.record, "weight": one.weight})
        told.append(
            f"{KEY}: {one.weight:g} times {earlier.record['method']} of {one.adapter} at {len(given)} sites"
        )
    for name in dict.fromkeys(name for given in changes for name in given):
        sites[name].adapter.start(sites[name].base.weight())
    if "fixed_base" in OBJECTIVES.declared(recipe.objective.method).requires:
        told.append(
            f"{KEY}: {recipe.objective.method} compares with the base without them; merge them for another"
        )
    return records, told


def check_stack(recipe: Recipe, plan: Plan) -> None:
    """What can be said of `model.adapters` without weights.

    Raises:
        RecipeError: one cannot be read, or changes what gets no adapter.
    """
    for _ in _read(recipe, {name: entry.site for name, entry in plan.items() if entry.config is not None}):
        pass


def _read(recipe: Recipe, sites: Mapping[str, Site]) -> Iterator[tuple[StackedAdapter, Earlier]]:
    for place, one in enumerate(recipe.model.adapters):
        try:
            earlier = read_earlier(_naming(recipe, one), sites)
            check_sites(earlier.given, sites)
        except RecipeError as error:
            raise RecipeError(f"{one.adapter}: {error.problems[0].message}", f"{KEY}.{place}") from error
        yield one, earlier


def _naming(recipe: Recipe, one: StackedAdapter) -> Recipe:
    """The recipe as if `model.adapter` named it."""
    section = recipe.model.model_copy(update={"adapter": one.adapter})
    return recipe.model_copy(update={"model": section})


def _change(name: str, trained: Trained, module: Adapted) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors A (k, in) and B (out, k) of a change; of one without them A is the identity.

    Raises:
        RecipeError: it is no change of this weight.
    """
    own = trained.adapter
    if isinstance(module, AdaptedBlock) or "mergeable" not in own.provides or "own_weights" in own.provides:
        raise RecipeError(f"{own.name} at {name} is no change of a weight that could be added", KEY)
    if reason := type(own).why_not_merged(own.config, own.site):
        raise RecipeError(f"the weight alone would be another function: {reason}", KEY)
    if module.held_bias is not None and own.delta_bias(torch.zeros(own.site.out_features)) is not None:
        raise RecipeError(f"{own.name} changes the bias of {name}, which is not added here; merge it", KEY)
    if (pair := trained.factors()) is not None:
        return pair[0].detach(), pair[1].detach()
    dense = trained.dense(module.base.weight().float().cpu()).detach()
    return torch.eye(dense.shape[1]), dense
