"""What a row of an exact table can measure: numbers read off the model, the modules and the optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from lrft.build.measure import planned_parameters
from lrft.build.optimizing import build_optimizer
from lrft.build.starting_plan import plan_without_weights
from lrft.core.run import Run
from lrft.lab.models import Models
from lrft.lab.tables.exact.schema import BUDGET, terms
from lrft.model.attach import detach
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ALLOCATORS
from lrft.registry.errors import RecipeError
from lrft.training import schedule

OF_OPTIMIZER = "optimizer_bytes"
SHAPE = {"hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}


@runtime_checkable
class Budgeted(Protocol):
    """An allocation that keeps fewer and fewer rank components, by a timetable."""

    def start(self, run: Run) -> None:
        """Look at the adapters."""

    def budget(self, step: int, total: int) -> int:
        """Components of all sites that step `step` of `total` leaves."""


def values(recipe: Recipe, models: Models, metrics: Iterable[str]) -> dict[str, float]:
    """Metric -> its value for a recipe on its model without weights; what rows count alike is counted once.

    Raises:
        RecipeError: the recipe has no such number.
    """
    wanted = list(metrics)
    parts = {term for metric in wanted for term in terms(metric)}
    measured, model = models.weigh(recipe, OF_OPTIMIZER in parts), models.get(recipe.model)
    found: dict[str, float] = {
        key: number for key, number in measured.items() if isinstance(number, int | float)
    }
    found["other_bytes"] = found["weight_bytes"] - found["linear_bytes"]
    config = model.hf.config.get_text_config()
    shape = {name: getattr(config, key, None) for name, key in SHAPE.items()}
    found |= {name: size for name, size in shape.items() if size is not None}
    steps = [int(match[1]) for part in parts if (match := BUDGET.fullmatch(part))]
    if steps:
        found |= {f"budget@{step}": budget for step, budget in budgets(recipe, model, steps).items()}
    return {metric: sum(found[term] for term in terms(metric)) for metric in wanted}


def budgets(recipe: Recipe, model: CausalLM, steps: Iterable[int]) -> dict[int, int]:
    """Step -> rank components that the very allocator of a training keeps after it.

    Raises:
        RecipeError: the allocation has no timetable, or the recipe no number of steps.
    """
    total = recipe.train.max_steps
    if total is None:
        raise RecipeError("a budget is one of a number of steps; write train.max_steps", "train.max_steps")
    allocator = ALLOCATORS.get(recipe.allocate.method)(recipe.allocate)
    if not isinstance(allocator, Budgeted):
        message = f"{recipe.allocate.method} keeps its ranks, so there is no budget by step to count"
        raise RecipeError(message, "allocate.method")
    adaptation = plan_without_weights(recipe, model)
    try:
        infos = planned_parameters(recipe, adaptation)
        # The allocator looks at the adapters and at the number of steps; no step is made.
        optimizer = build_optimizer(recipe, infos)
        rates = schedule.build(optimizer, recipe.schedule, total)
        run = Run(model, infos, optimizer, rates, total, recipe=recipe)
        allocator.start(run)
        return {step: allocator.budget(step, total) for step in steps}
    finally:
        detach(model)
