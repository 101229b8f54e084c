"""What is adapted, before any weight is stored: the sites of a model, the plan they start from, what cannot train."""

from __future__ import annotations

from lrft.build.adaptation import Adaptation
from lrft.build.decide import check_growth, decide, planners_of
from lrft.build.earlier import check_earlier
from lrft.build.stacked import check_stack
from lrft.build.units import prepare_units
from lrft.core.stages import Planner
from lrft.model.attach import check_ranks, make_plan
from lrft.model.causal_lm import CausalLM
from lrft.model.chosen import check_experts, choose_sites
from lrft.model.matrices import matrices
from lrft.model.new_tokens import check_vocabulary
from lrft.model.packed import check_packing
from lrft.model.rope import longer, positions_of
from lrft.model.score_head import give_score_head
from lrft.model.sites import sites_of
from lrft.model.text_part import on_text
from lrft.model.trained import check_sites, check_storage, choose_base_weights
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError


def plan_without_weights(recipe: Recipe, model: CausalLM) -> Adaptation:
    """What `adapt` plans, for a model without weights; planners that look at weights or data foresee.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    prepare_units(recipe, model, None, True)
    adaptation, planners = starting_plan(recipe, model)
    left = decide(adaptation.plan, planners, None)
    check_growth(recipe, adaptation.plan, left)
    adaptation.undecided = bool(left)
    for planner in left:
        adaptation.plan.update(planner.foresee(adaptation.plan))
    if recipe.model.adapter is not None:
        check_earlier(recipe, adaptation.plan)
    check_stack(recipe, adaptation.plan)
    return adaptation


def starting_plan(recipe: Recipe, model: CausalLM, check: bool = True) -> tuple[Adaptation, list[Planner]]:
    """The starting plan, and the planners that have their say.

    Args:
        check: refuse what could not train; a run that has trained is past that.
    """
    _check_length(recipe, model)
    check_packing(recipe.model.name, model.packing, model.packed, recipe.quantization)
    choose_base_weights(model, recipe.trainable.weights)
    check_vocabulary(model)
    give_score_head(model, recipe.model.head, recipe.train.seed)
    held = matrices(model)
    if check and "dense_base" not in QUANTIZERS.declared(recipe.quantization.method).provides:
        check_storage(model, recipe.quantization.method)
    if recipe.adapter is None:
        return Adaptation(model, {}, [], held), []
    method = recipe.adapter.method
    try:
        there = sites_of(model, ADAPTERS.get(method).site_kinds)
    except ValueError as error:
        raise RecipeError(f"{method} cannot go on this model: {error}", "adapter.method") from None
    reached = {name: there[name] for name in on_text(model.hf, there)}
    aside = there.keys() - reached.keys()
    sites, table = choose_sites(reached, recipe.adapter, held.total, model.direct, aside)
    check_experts(sites, ADAPTERS.get(method))
    check_vocabulary(model, sites)
    plan = make_plan(sites, recipe.adapter)
    if check:
        check_sites(model, sites)
        check_ranks(plan, ADAPTERS.get(method))
    return Adaptation(model, plan, table, held), planners_of(recipe)


def _check_length(recipe: Recipe, model: CausalLM) -> None:
    positions = positions_of(model.hf.config.get_text_config())
    virtual = (
        0 if recipe.adapter is None else ADAPTERS.get(recipe.adapter.method).virtual_tokens(recipe.adapter)
    )
    if positions is not None and recipe.train.max_length + virtual > positions:
        beside = f" with {virtual} virtual ones" if virtual else ""
        most = f"{positions - virtual}{longer(model.hf.config, recipe.model)}"
        message = f"{recipe.train.max_length} tokens{beside} are more than the model has positions; use at most {most}"
        raise RecipeError(message, "train.max_length")
