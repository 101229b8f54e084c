"""Who decides about the sites of a recipe, what they look at, and whether the weights are read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrft.build.calibration import measured_signals
from lrft.core import stop
from lrft.core.frozen import FrozenLinear, Quantizer
from lrft.core.stages import Evidence, Init, Plan, Planner, Signals, ranks_of
from lrft.evaluation.subject import Progress
from lrft.model.builder import dense
from lrft.model.causal_lm import CausalLM
from lrft.recipe.length import check_length
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, ALLOCATORS, INITS, PRUNERS, QUANTIZERS

if TYPE_CHECKING:
    from lrft.build.text import Text


def quantizer(recipe: Recipe) -> Quantizer:
    """The recipe's storage format, ready to take (weight, bias) and settings of one layer."""
    cls, config = QUANTIZERS.get(recipe.quantization.method), recipe.quantization

    def store(weight: Tensor, bias: Tensor | None = None, **settings: object) -> FrozenLinear:
        chosen = type(config).model_validate({**config.model_dump(), **settings}) if settings else config
        layer: FrozenLinear = cls(weight, bias, config=chosen)
        return layer

    return store


def planners_of(recipe: Recipe) -> list[Planner]:
    """What decides about all sites of a recipe before training, in the order they have their say."""
    if recipe.adapter is None:
        return []
    assert recipe.init is not None, "an adapter without an init"
    init = INITS.get(recipe.init.method)(recipe.init)
    return [ALLOCATORS.get(recipe.allocate.method)(recipe.allocate), init]


def gains_by_streaming(recipe: Recipe, device: torch.device, saved: bool, paged: bool = False) -> bool:
    """Whether less is held while the model is loaded if its weights are read one by one.

    On the CPU a storage that keeps weights as they are keeps the very pages of the file. What is calibrated needs the
    whole dense model; what is drawn, or trains, is never stored otherwise.

    Args:
        saved: a checkpoint says what an adapter begins with.
        paged: every layer goes elsewhere as soon as it is made, in whatever storage.
    """
    if recipe.model.weights != "pretrained" or recipe.trainable.weights == "full":
        return False
    if recipe.prune is not None and "cut_units" in PRUNERS.get(recipe.prune.method).provides:
        return False
    dense = "dense_base" in QUANTIZERS.declared(recipe.quantization.method).provides
    if device.type == "cpu" and dense and not paged:
        return False
    if recipe.adapter is not None and "own_weights" in ADAPTERS.get(recipe.adapter.method).provides:
        return False
    return saved or not any(planner.needs for planner in planners_of(recipe))


def complete(
    recipe: Recipe,
    model: CausalLM,
    plan: Plan,
    planners: Sequence[Planner],
    text: Text | None,
    device: torch.device,
    progress: Progress,
    trusted: bool = False,
) -> Signals:
    """Let every planner have its say on the plan; what was measured for them.

    Raises:
        RecipeError: a rank is more than the init can start at a site.
    """
    left = decide(plan, planners, None)
    check_growth(recipe, plan, left)
    signals = measured_signals(recipe, model, plan, left, text, device, progress, trusted)
    decide(plan, left, _evidence(recipe, model, signals, progress))
    return signals


def check_growth(recipe: Recipe, plan: Plan, left: Sequence[Planner]) -> None:
    """Refuse settings that do not fit the ranks of the sites, once nobody is left to change these.

    Raises:
        RecipeError: with every setting that does not fit.
    """
    if not left:
        check_length(recipe, recipe.train.max_steps, ranks_of(plan))


def decide(plan: Plan, planners: Sequence[Planner], evidence: Evidence | None) -> list[Planner]:
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
        stop.poll()  # what a planner does with a weight may take long
        return dense(
            model.hf.get_submodule(name), None if model.unread is None else model.unread.weight(name)
        )[0]

    return Evidence(signals, weight, quantizer(recipe), partial(progress, "planning layers"))
