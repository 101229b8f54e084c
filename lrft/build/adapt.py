"""From a recipe to a base model with its adapter: sites, calibration, plan, attachment."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lrft.build import remarks
from lrft.build.adaptation import Adaptation as Adaptation
from lrft.build.decide import check_growth, complete, decide, gains_by_streaming, planners_of, quantizer
from lrft.build.earlier import begin_with, check_earlier
from lrft.build.settle import bare, settled, settled_first, with_packing
from lrft.build.stacked import check_stack, stack
from lrft.build.text import Text
from lrft.build.units import hide_units, on_whole_sites, prepare_units
from lrft.core.stages import Planner, Signals, SitePlan
from lrft.core.team import Team
from lrft.evaluation.subject import Progress, silent
from lrft.model import heap
from lrft.model.attach import attach, check_ranks, make_plan
from lrft.model.backend import check_runs
from lrft.model.builder import SiteBuilder
from lrft.model.causal_lm import CausalLM
from lrft.model.chosen import check_experts, choose_sites
from lrft.model.liger import check_liger
from lrft.model.load import configure, load_model, open_model, prove
from lrft.model.matrices import matrices
from lrft.model.new_tokens import check_vocabulary, prove_rows
from lrft.model.packed import check_packing
from lrft.model.recompute import with_layers_kept
from lrft.model.rope import longer
from lrft.model.score_head import give_score_head
from lrft.model.sites import sites_of
from lrft.model.stored import NotStreamed
from lrft.model.trained import check_sites, check_storage, choose_base_weights
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json


def adapt(
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    text: Text | None = None,
    saved: dict[str, Tensor] | None = None,
    planned: dict[str, dict[str, Json]] | None = None,
    trains: bool = True,
    sums: bool = False,
    progress: Progress = silent,
) -> Adaptation:
    """Load the base model and put the recipe's adapter on it.

    Args:
        text: the training rows, for what calibrates.
        saved: tensors of a checkpoint: its starts are used as they are, and nothing is calibrated again.
        planned: plan.json of the run that `saved` belongs to.
        trains: it will be trained; else it is scored or merged, and no rows are packed.
        sums: know every value of the base (`load_model`).

    Raises:
        RecipeError: the model cannot be loaded, or a pattern matches nothing.
    """
    heap.bound_caches()
    if trains and recipe.model.liger:
        check_liger(torch.device(device))
    of = partial(_adapt, recipe, text=text, saved=saved, planned=planned, trains=trains)
    build = partial(of, device=torch.device(device), trusted=trust_remote_code, sums=sums, progress=progress)
    if not gains_by_streaming(recipe, torch.device(device), saved is not None):
        return build(streamed=False)
    try:
        return build(streamed=True)
    except NotStreamed as reason:
        why = str(reason)
    adaptation = build(streamed=False)
    if why:
        adaptation.notes.append(f"model.name: all weights were read before any was stored ({why})")
    return adaptation


def _adapt(
    recipe: Recipe,
    *,
    device: torch.device,
    trusted: bool,
    text: Text | None,
    saved: dict[str, Tensor] | None,
    planned: dict[str, dict[str, Json]] | None,
    trains: bool,
    sums: bool,
    progress: Progress,
    streamed: bool,
) -> Adaptation:
    """`adapt`, with the weights read one by one where they are `streamed`, and then asked as they are stored."""
    if streamed:
        model = open_model(recipe.model, trusted, sums)
    else:
        seed = recipe.train.seed
        model = load_model(recipe.model, device=device, trust_remote_code=trusted, seed=seed, sums=sums)
    if recipe.model.tokenizer is not None and text is not None:
        text.check_vocabulary(model.hf.get_input_embeddings().num_embeddings)
    asked = recipe = recipe if trains else with_packing(recipe, False)
    prepare_units(recipe, model, saved, trains)
    adaptation, planners = _begun(recipe, model, check=trains)
    measures = saved is None and any(planner.needs for planner in planners)
    recipe = settled_first(asked, adaptation, device, trains, measures, streamed)
    signals: Signals = {}
    if recipe.adapter is not None and saved is not None and planned is not None:
        kind = type(recipe.adapter)
        adaptation.plan = {name: SitePlan.of(record, kind) for name, record in planned.items()}
        adaptation.plan = on_whole_sites(model, adaptation.plan)
    elif recipe.adapter is not None:
        signals = complete(recipe, model, adaptation.plan, planners, text, device, progress)
    builder = _builder(recipe, signals, saved, device)
    adaptation.team = builder.team
    attach(model, adaptation.plan, builder, recipe.train.seed, progress=partial(progress, "preparing layers"))
    hide_units(model)
    told = _given(recipe, adaptation) if saved is None and trains else []
    if streamed:
        _prove(asked, adaptation, device, trains)
    else:
        if device.type != "cpu":
            with bare(model):
                settled(asked, adaptation, device, trains)
        check_runs(model)
    slow = configure(model, with_layers_kept(recipe.model), trains)
    adaptation.notes += [*told, *(remarks.of_costs(recipe, slow, device) if trains else [])]
    adaptation.notes += remarks.of_new_tokens(recipe, model, text) if trains else []
    adaptation.notes += remarks.of_starts(recipe, adaptation.plan) if saved is None else []
    heap.give_back()
    return adaptation


def _given(recipe: Recipe, adaptation: Adaptation) -> list[str]:
    """Put what was trained before in its place, of `model.adapters` and `model.adapter`; what to tell of it."""
    stacked, told = stack(recipe, adaptation.model)
    if recipe.model.adapter is not None:
        adaptation.origin, more = begin_with(recipe, adaptation.model, adaptation.plan)
        told += more
    if stacked:
        adaptation.origin = {**(adaptation.origin or {}), "stacked": stacked}
    return told


def _builder(
    recipe: Recipe, signals: Signals, saved: dict[str, Tensor] | None, device: torch.device
) -> SiteBuilder:
    return SiteBuilder(
        quantizer(recipe),
        None if recipe.adapter is None else ADAPTERS.get(recipe.adapter.method),
        recipe.adapter,
        None if recipe.init is None else INITS.get(recipe.init.method)(recipe.init),
        signals=signals,
        saved=saved,
        device=device,
        team=Team.joined(device, in_step=recipe.train.shard_base),
    )


def _prove(recipe: Recipe, adaptation: Adaptation, device: torch.device, trains: bool) -> None:
    """Ask a model whose layers are stored by now what a dense one is asked as it is loaded, and whether it runs.

    Raises:
        NotStreamed: something is wrong with it, which the dense model has to say.
    """
    model = adaptation.model
    try:
        with bare(model):
            prove(model, recipe.model, device)
            settled(recipe, adaptation, device, trains)
        prove_rows(model)
        check_runs(model)
    except RecipeError as error:
        raise NotStreamed(error.problems[0].message) from None


def plan_without_weights(recipe: Recipe, model: CausalLM) -> Adaptation:
    """What `adapt` plans, for a model without weights; planners that look at weights or data foresee.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    prepare_units(recipe, model, None, True)
    adaptation, planners = _begun(recipe, model)
    left = decide(adaptation.plan, planners, None)
    check_growth(recipe, adaptation.plan, left)
    adaptation.undecided = bool(left)
    for planner in left:
        adaptation.plan.update(planner.foresee(adaptation.plan))
    if recipe.model.adapter is not None:
        check_earlier(recipe, adaptation.plan)
    check_stack(recipe, adaptation.plan)
    return adaptation


def _begun(recipe: Recipe, model: CausalLM, check: bool = True) -> tuple[Adaptation, list[Planner]]:
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
    sites, table = choose_sites(there, recipe.adapter, held.total, model.direct)
    check_experts(sites, ADAPTERS.get(method))
    check_vocabulary(model, sites)
    plan = make_plan(sites, recipe.adapter)
    if check:
        check_sites(model, sites)
        check_ranks(plan, ADAPTERS.get(method))
    return Adaptation(model, plan, table, held), planners_of(recipe)


def _check_length(recipe: Recipe, model: CausalLM) -> None:
    positions = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    virtual = (
        0 if recipe.adapter is None else ADAPTERS.get(recipe.adapter.method).virtual_tokens(recipe.adapter)
    )
    if positions is not None and recipe.train.max_length + virtual > positions:
        beside = f" with {virtual} virtual ones" if virtual else ""
        message = (
            f"{recipe.train.max_length} tokens{beside} are more than the model has positions; use at most "
        )
        more = longer(model.hf.config, recipe.model)
        raise RecipeError(f"{message}{positions - virtual}{more}", "train.max_length")
