"""From a recipe to a base model with its adapter: sites, calibration, plan, attachment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lrft.build.calibration import measured_signals
from lrft.build.text import Text
from lrft.core.adapted import adapted, adapters_off
from lrft.core.frozen import FrozenLinear, Quantizer
from lrft.core.stages import Evidence, Init, Plan, Planner, Signals, SitePlan
from lrft.evaluation.subject import Progress, silent
from lrft.model.attach import attach, make_plan
from lrft.model.backend import check_mask, check_runs, settle_attention, why_padded
from lrft.model.builder import SiteBuilder, dense
from lrft.model.causal_lm import CausalLM
from lrft.model.load import configure, load_model
from lrft.model.recompute import with_layers_kept
from lrft.model.sites import Matrices, TargetRow, choose, matrices, sites_of
from lrft.model.trained import check_sites, check_storage, choose_base_weights
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, ALLOCATORS, INITS, QUANTIZERS
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json


@dataclass
class Adaptation:
    """A base model with a recipe's adapter on it, and how it came about; `notes` are for the user.

    Attributes:
        packing: rows hold several documents.
        joined: the rows of a micro-batch are one row, without padding.
        recomputed: layers that are computed again in the backward pass.
    """

    model: CausalLM
    plan: Plan
    targets: list[TargetRow]
    matrices: Matrices
    packing: bool = True
    joined: bool = False
    recomputed: int = 0
    undecided: bool = False  # a planner that looks at weights or data has not been asked
    notes: list[str] = field(default_factory=list)


def quantizer(recipe: Recipe) -> Quantizer:
    """The recipe's storage format, ready to take (weight, bias) and settings of one layer."""
    cls, config = QUANTIZERS.get(recipe.quantization.method), recipe.quantization

    def store(weight: Tensor, bias: Tensor | None = None, **settings: object) -> FrozenLinear:
        chosen = type(config).model_validate({**config.model_dump(), **settings}) if settings else config
        layer: FrozenLinear = cls(weight, bias, config=chosen)
        return layer

    return store


def adapt(
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    text: Text | None = None,
    saved: dict[str, Tensor] | None = None,
    planned: dict[str, dict[str, Json]] | None = None,
    trains: bool = True,
    progress: Progress = silent,
) -> Adaptation:
    """Load the base model and put the recipe's adapter on it.

    Args:
        text: the training rows, for what calibrates.
        saved: tensors of a checkpoint: its starts are used as they are, and nothing is calibrated again.
        planned: plan.json of the run that `saved` belongs to.
        trains: it will be trained; else it is scored or merged, and no rows are packed.

    Raises:
        RecipeError: the model cannot be loaded, or a pattern matches nothing.
    """
    model = load_model(
        recipe.model, device=device, trust_remote_code=trust_remote_code, seed=recipe.train.seed
    )
    if recipe.model.tokenizer is not None and text is not None:
        text.check_vocabulary(model.hf.get_input_embeddings().num_embeddings)
    if not trains:
        recipe = _packing(recipe, False)
    asked = recipe
    adaptation, planners = _begun(recipe, model, check=trains)
    on_cpu = torch.device(device).type == "cpu"
    measures = saved is None and any(planner.needs for planner in planners)
    recipe = _settled_first(asked, adaptation, device, trains, measures)
    signals: Signals = {}
    if recipe.adapter is not None and saved is not None and planned is not None:
        kind = type(recipe.adapter)
        adaptation.plan = {name: SitePlan.of(record, kind) for name, record in planned.items()}
    elif recipe.adapter is not None:
        left = _decide(adaptation.plan, planners, None)
        signals = measured_signals(recipe, model, adaptation.plan, left, text, device, progress)
        _decide(adaptation.plan, left, _evidence(recipe, model, signals, progress))
    builder = SiteBuilder(
        quantizer(recipe),
        None if recipe.adapter is None else ADAPTERS.get(recipe.adapter.method),
        recipe.adapter,
        None if recipe.init is None else INITS.get(recipe.init.method)(recipe.init),
        signals=signals,
        saved=saved,
        device=torch.device(device),
    )
    attach(model, adaptation.plan, builder, recipe.train.seed, progress=partial(progress, "preparing layers"))
    if not on_cpu:
        with _bare(model):
            _settled(asked, adaptation, device, trains)
    check_runs(model)
    configure(model, with_layers_kept(recipe.model))
    adaptation.notes += _remarks(recipe) if on_cpu and trains else []
    return adaptation


def _remarks(recipe: Recipe) -> list[str]:
    """What a training on a CPU is told of what it chose."""
    told = QUANTIZERS.get(recipe.quantization.method).on_cpu
    return [f"quantization: {told}"] if told else []


def plan_without_weights(recipe: Recipe, model: CausalLM) -> Adaptation:
    """What `adapt` plans, for a model without weights; planners that look at weights or data are not asked.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    adaptation, planners = _begun(recipe, model)
    adaptation.undecided = bool(_decide(adaptation.plan, planners, None))
    return adaptation


def _begun(recipe: Recipe, model: CausalLM, check: bool = True) -> tuple[Adaptation, list[Planner]]:
    """The starting plan, and the planners that have their say.

    Args:
        check: refuse what could not train; a run that has trained is past that.
    """
    _check_length(recipe, model)
    choose_base_weights(model, recipe.trainable.weights)
    held = matrices(model)
    if check and "dense_base" not in QUANTIZERS.declared(recipe.quantization.method).provides:
        check_storage(model, recipe.quantization.method)
    if recipe.adapter is None:
        return Adaptation(model, {}, [], held), []
    try:
        there = sites_of(model, ADAPTERS.get(recipe.adapter.method).site_kinds)
    except ValueError as error:
        raise RecipeError(
            f"{recipe.adapter.method} cannot go on this model: {error}", "adapter.method"
        ) from None
    sites, table = choose(there, recipe.adapter.targets, held.total, model.direct)
    if check:
        check_sites(model, sites)
    assert recipe.init is not None, "an adapter without an init"
    init = INITS.get(recipe.init.method)(recipe.init)
    planners = [ALLOCATORS.get(recipe.allocate.method)(recipe.allocate), init]
    return Adaptation(model, make_plan(sites, recipe.adapter), table, held), planners


def _bare(model: CausalLM) -> AbstractContextManager[None]:
    """The model with its adapters off, unless they are the weights themselves."""
    own = any("own_weights" in module.adapter.provides for _, module in adapted(model.hf))
    return nullcontext() if own else adapters_off(model.hf)


def _settled_first(
    asked: Recipe, adaptation: Adaptation, device: torch.device | str, trains: bool, measures: bool
) -> Recipe:
    """What `_settled` finds before anything is on the model, whose backend may be one that only runs on the GPU.

    Args:
        measures: the model is going there as it is, to be measured.
    """
    model = adaptation.model
    if model.flattens and torch.device(device).type != "cpu":
        if not measures:  # asked later, of the layers that replace these
            return _packing(asked, bool(asked.train.packing))
        model.hf.to(device)
    return _settled(asked, adaptation, device, trains)


def _settled(recipe: Recipe, adaptation: Adaptation, device: torch.device | str, trains: bool) -> Recipe:
    """Find what the model computes rightly with; the recipe that says whether rows are packed."""
    model = adaptation.model
    wanted = True if recipe.model.compile and recipe.train.packing is None else recipe.train.packing
    found = settle_attention(model, recipe.model, device, wanted)
    adaptation.packing, adaptation.notes = found.packing, [found.note] if found.note else []
    if trains:
        masked = found.packing or recipe.train.batch_size > 1  # else a row is one document, without padding
        check_mask(model, recipe.model, device, recipe.train.max_length if masked else 0)
    if trains and not found.told:
        why = why_padded(model, recipe.model, found.packing)
        adaptation.joined = not why
        if why and not found.packing:
            adaptation.notes.append(f"train.packing: false, and rows are padded ({why})")
    return _packing(recipe, adaptation.packing)


def _packing(recipe: Recipe, packing: bool) -> Recipe:
    train = recipe.train.model_copy(update={"packing": packing})
    return recipe.model_copy(update={"train": train})


def _decide(plan: Plan, planners: Sequence[Planner], evidence: Evidence | None) -> list[Planner]:
    """Ask every planner; without evidence those that look at weights or data are left, and returned."""
    left = []
    for planner in planners:
        if evidence is None and (planner.needs or planner.reads_weights):
            left.append(planner)
        else:
            plan.update(planner.plan(plan, evidence))
    for planner in planners:
        if isinstance(planner, Init):
            planner.check(plan)
    return left


def _evidence(recipe: Recipe, model: CausalLM, signals: Signals, progress: Progress) -> Evidence:
    def weight(name: str) -> Tensor:
        return dense(model.hf.get_submodule(name))[0]

    return Evidence(signals, weight, quantizer(recipe), partial(progress, "planning layers"))


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
        raise RecipeError(f"{message}{positions - virtual}", "train.max_length")
