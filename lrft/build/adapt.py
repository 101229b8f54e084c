"""From a recipe to a base model with its adapter: sites, calibration, plan, attachment."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lrft.build import remarks
from lrft.build.adaptation import Adaptation as Adaptation
from lrft.build.decide import complete, gains_by_streaming, quantizer
from lrft.build.native import kernels_here
from lrft.build.settle import bare, settled, settled_first, with_packing
from lrft.build.stacked import begin_on
from lrft.build.starting_plan import starting_plan
from lrft.build.text import Text
from lrft.build.units import hide_units, on_whole_sites, prepare_units
from lrft.core.stages import Signals, SitePlan
from lrft.core.team import Team
from lrft.evaluation.subject import Progress, silent
from lrft.model import heap
from lrft.model.attach import attach
from lrft.model.backend import check_runs
from lrft.model.builder import SiteBuilder
from lrft.model.causal_lm import CausalLM
from lrft.model.configure import configure
from lrft.model.liger import check_liger
from lrft.model.load import load_model, open_model, prove
from lrft.model.new_tokens import prove_rows
from lrft.model.paged_weights import PagedWeights
from lrft.model.recompute import with_layers_kept
from lrft.model.stored import NotStreamed
from lrft.ops.native import using
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, INITS
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
    paged: PagedWeights | None = None,
) -> Adaptation:
    """Load the base model and put the recipe's adapter on it.

    Args:
        text: the training rows, for what calibrates.
        saved: tensors of a checkpoint: its starts are used as they are, and nothing is calibrated again.
        planned: plan.json of the run that `saved` belongs to.
        trains: it will be trained; else it is scored or merged, and no rows are packed.
        sums: know every value of the base (`load_model`).
        paged: where frozen weights are put as they are made; None where they stay.

    Raises:
        RecipeError: the model cannot be loaded, or a pattern matches nothing.
    """
    heap.bound_caches()
    if trains and recipe.model.liger:
        check_liger(torch.device(device))
    of = partial(_adapt, recipe, text=text, saved=saved, planned=planned, trains=trains, paged=paged)
    build = partial(of, device=torch.device(device), trusted=trust_remote_code, sums=sums, progress=progress)
    if not gains_by_streaming(recipe, torch.device(device), saved is not None, paged is not None):
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
    paged: PagedWeights | None,
) -> Adaptation:
    """`adapt`, with the weights read one by one where they are `streamed`, and then asked as they are stored."""
    model = _loaded(recipe, device, trusted, sums, streamed)
    if recipe.model.tokenizer is not None and text is not None:
        text.check_vocabulary(model.hf.get_input_embeddings().num_embeddings)
    asked = recipe = recipe if trains else with_packing(recipe, False)
    prepare_units(recipe, model, saved, trains)
    adaptation, planners = starting_plan(recipe, model, check=trains)
    measures = saved is None and any(planner.needs for planner in planners)
    recipe = settled_first(asked, adaptation, device, trains, measures, streamed)
    signals: Signals = {}
    if recipe.adapter is not None and saved is not None and planned is not None:
        kind = type(recipe.adapter)
        adaptation.plan = {name: SitePlan.of(record, kind) for name, record in planned.items()}
        adaptation.plan = on_whole_sites(model, adaptation.plan)
    elif recipe.adapter is not None:
        signals = complete(recipe, model, adaptation.plan, planners, text, device, progress, trusted)
    builder = _builder(recipe, signals, saved, device, paged)
    adaptation.team = builder.team
    with using(kernels_here(device)):
        attach(model, adaptation.plan, builder, recipe.train.seed, partial(progress, "preparing layers"))
    _settle_places(model, paged)
    told: list[str] = []
    if saved is None and trains:
        adaptation.origin, told = begin_on(recipe, model, adaptation.plan)
    if streamed:
        _prove(asked, adaptation, device, trains)
    else:
        if device.type != "cpu":
            with bare(model):
                settled(asked, adaptation, device, trains)
        check_runs(model)
    slow = configure(model, with_layers_kept(recipe.model), trains)
    adaptation.notes += [*told, *(remarks.of_costs(recipe, slow, device) if trains else [])]
    adaptation.notes += (
        [*remarks.of_parts_aside(model), *remarks.of_new_tokens(recipe, model, text)] if trains else []
    )
    adaptation.notes += remarks.of_attentions(recipe, adaptation.plan, model) if trains else []
    adaptation.notes += remarks.of_starts(recipe, adaptation.plan) if saved is None else []
    heap.give_back()
    return adaptation


def _loaded(recipe: Recipe, device: torch.device, trusted: bool, sums: bool, streamed: bool) -> CausalLM:
    """The base, whose linear layers wait for their weights where it is `streamed`."""
    if streamed:
        return open_model(recipe.model, trusted, sums)
    seed = recipe.train.seed
    return load_model(recipe.model, device=device, trust_remote_code=trusted, seed=seed, sums=sums)


def _settle_places(model: CausalLM, paged: PagedWeights | None) -> None:
    """What is hidden of a model that has all its layers, and what of it lies elsewhere."""
    hide_units(model)
    if paged is not None:
        paged.settle(model)


def _builder(
    recipe: Recipe,
    signals: Signals,
    saved: dict[str, Tensor] | None,
    device: torch.device,
    paged: PagedWeights | None,
) -> SiteBuilder:
    if paged is not None:
        paged.begin()
    return SiteBuilder(
        quantizer(recipe),
        None if recipe.adapter is None else ADAPTERS.get(recipe.adapter.method),
        recipe.adapter,
        None if recipe.init is None else INITS.get(recipe.init.method)(recipe.init),
        signals=signals,
        saved=saved,
        device=device,
        team=Team.joined(device, in_step=recipe.train.shard_base),
        put=None if paged is None else paged.put,
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
