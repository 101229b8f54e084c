"""`lrft plan`: what a recipe takes and whether it fits, before anything is downloaded, tokenized or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lrft.api.planning.fit import Change, Device, changes, device_of, forecast
from lrft.api.planning.rate import Rate, find_rate
from lrft.build.measured import Peak, Peaks, Target
from lrft.build.steps import drawing, rows_of_a_pass
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe

ASSUMED = "rows are taken as full: {rows} of {length} tokens in a micro-batch, every token learnt"


class Ahead(TypedDict):
    """What `lrft plan` gives.

    `peaks` are bytes by category, of `train`, `eval`, `merge` and, where they can be, `requantize` and `gguf`; `margin`
    is what the device has beyond the largest that is planned for training, negative where it does not fit; `edits` are
    empty where it fits.
    """

    recipe: str
    recipe_hash: str
    model_source: str
    base_parameters: int
    trainable_parameters: int
    trainable_percent: float
    ranks_undecided: bool
    targets: list[Target]
    peaks: dict[str, Peak]
    moment: str
    recomputed_layers: int
    device: Device
    fits: dict[str, bool]
    margin: int
    edits: list[Change]
    rate: Rate | None
    seconds: float | None
    assumes: list[str]


def plan_ahead(
    recipe: LoadedRecipe | Path | str,
    device: str | None = None,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
) -> Ahead:
    """What a recipe takes, from the configuration of its model alone.

    Args:
        device: memory that there is, as `24GiB`; by default the GPU's where one is visible, else the free RAM.
        trust_remote_code: whether code that comes with the model would train; none runs here, so such a model is
            refused.

    Raises:
        RecipeError: the recipe is not valid, or its model is of a family that is not known layer by layer.
        UsageError: `device` is no size.
    """
    loaded = as_loaded(recipe, overrides)
    asked, where = loaded.recipe, device_of(loaded.recipe, device)
    found, source = forecast(asked, where, trust_remote_code=trust_remote_code)
    counted, margin = found.counted, where["bytes"] - found.train["total"]
    rate = find_rate(asked, where["kind"], found.recomputed > 0)
    peaks = found.by_use()
    return {
        "recipe": loaded.name,
        "recipe_hash": recipe_hash(asked),
        "model_source": source,
        "base_parameters": counted["base"],
        "trainable_parameters": counted["trainable"],
        "trainable_percent": counted["trainable_percent"],
        "ranks_undecided": counted["ranks_undecided"],
        "targets": counted["targets"],
        "peaks": peaks,
        "moment": found.moment,
        "recomputed_layers": found.recomputed,
        "device": where,
        "fits": {name: peak["total"] <= where["bytes"] for name, peak in peaks.items()},
        "margin": margin,
        "edits": [] if margin >= 0 else changes(asked, where),
        "rate": rate,
        "seconds": _seconds(asked, rate),
        "assumes": _assumptions(asked, found, where),
    }


def _seconds(recipe: Recipe, rate: Rate | None) -> float | None:
    """How long the training takes at a rate, where the recipe says how many steps it has and no answer is drawn."""
    settings = recipe.train
    if rate is None or settings.max_steps is None or drawing(recipe) is not None:
        return None
    tokens = settings.batch_size * settings.gradient_accumulation * settings.max_length
    return settings.max_steps * tokens / rate["tokens_per_second"]


def _assumptions(recipe: Recipe, planned: Peaks, where: Device) -> list[str]:
    settings, draws = recipe.train, drawing(recipe)
    answers = 1 if draws is None else draws.group
    found = [ASSUMED.format(rows=rows_of_a_pass(recipe) * answers, length=settings.max_length)]
    if draws is not None:
        found.append("what drawing the answers takes is left out")
    found.append(
        f"evaluation is in batches of {recipe.eval.batch_tokens} tokens; a cache of generation is left out"
    )
    if planned.mixed:
        found.append("tokens are taken to be spread evenly over the experts, which is an estimate")
    if planned.counted["ranks_undecided"]:
        found.append("ranks are the recipe's, before a planner that looks at weights or data has had its say")
    if recipe.model.compile:
        found.append("the model is planned as it runs without torch.compile")
    if settings.shard_base:
        found.append("one process is planned, which holds the whole base; train.shard_base is left out")
    if recipe.offload.parts:
        found.append(
            f"of {' and '.join(recipe.offload.parts)} what lies on a disk is left out; evaluation and merging hold the "
            "whole model"
        )
    if where["kind"] == "cuda":
        found.append("what the allocator leaves unused between blocks is left out; a few percent are usual")
    return found
