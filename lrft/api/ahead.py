"""`lrft plan`: what a recipe takes and whether it fits, before anything is downloaded, tokenized or loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch

from lrft.api.rate import Rate, find_rate
from lrft.build.edits import fitting
from lrft.build.measured import Target
from lrft.build.peaks import Peak, Peaks, peaks_of
from lrft.build.recomputing import free_bytes
from lrft.model.described import build_skeleton
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ASSUMED = "rows are taken as full: {rows} of {length} tokens in a micro-batch, every token learnt"


class Device(TypedDict):
    """Where a recipe would run: `cpu` or `cuda`, with so many bytes, and where that is from."""

    kind: str
    bytes: int
    source: str


class Change(TypedDict):
    """An edit that makes a recipe fit: as overrides, what it gives up, and the peak that it was planned to have."""

    overrides: list[str]
    costs: str
    total: int
    margin: int


class Ahead(TypedDict):
    """What `lrft plan` gives.

    `peaks` are bytes by category, of `train`, `eval` and `merge`; `margin` is what the device has beyond the largest
    that is planned for training, negative where it does not fit; `edits` are empty where it fits.
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
    recipe: LoadedRecipe | Path | str, device: str | None = None, *, overrides: Sequence[str] = ()
) -> Ahead:
    """What a recipe takes, from the configuration of its model alone.

    Args:
        device: memory that there is, as `24GiB`; by default the GPU's where one is visible, else the free RAM.

    Raises:
        RecipeError: the recipe is not valid, or its model is of a family that is not known layer by layer.
        UsageError: `device` is no size.
    """
    loaded = as_loaded(recipe, overrides)
    asked, where = loaded.recipe, device_of(loaded.recipe, device)
    found, source = forecast(asked, where)
    counted, margin = found.counted, where["bytes"] - found.train["total"]
    rate = find_rate(asked, where["kind"], counted["base"], found.recomputed > 0)
    peaks = {"train": found.train, "eval": found.eval, "merge": found.merge}
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
        "assumes": _assumptions(asked, counted["ranks_undecided"], where),
    }


def forecast(recipe: Recipe, where: Device) -> tuple[Peaks, str]:
    """The peaks of a recipe on a device, with as many layers computed again as its memory asks for where it is left
    to that; and where the model's description is from."""
    model, described = build_skeleton(recipe.model)
    found = peaks_of(recipe, model, where["kind"])
    if recipe.model.activation_checkpointing != "auto" or found.train["total"] <= where["bytes"]:
        return found, described.source
    again = recipe.model.model_copy(update={"activation_checkpointing": True})
    model, _ = build_skeleton(recipe.model)
    return peaks_of(recipe.model_copy(update={"model": again}), model, where["kind"]), described.source


def changes(recipe: Recipe, where: Device, enough: int = 3) -> list[Change]:
    """The cheapest edits with which training fits, each planned again."""

    def total(changed: Recipe) -> int:
        return forecast(changed, where)[0].train["total"]

    return [
        {
            "overrides": list(fit.edit.overrides),
            "costs": fit.edit.costs,
            "total": fit.total,
            "margin": where["bytes"] - fit.total,
        }
        for fit in fitting(recipe, where["bytes"], total, enough)
    ]


def device_of(recipe: Recipe, size: str | None) -> Device:
    """Where a recipe would run. A size alone is taken for a GPU's, unless the recipe wants the CPU.

    Raises:
        UsageError: `size` is none.
    """
    on_cpu = recipe.train.device == "cpu"
    if size is not None:
        return {"kind": "cpu" if on_cpu else "cuda", "bytes": parse_size(size), "source": "--device"}
    if not on_cpu and torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return {"kind": "cuda", "bytes": int(memory), "source": name}
    return {"kind": "cpu", "bytes": int(free_bytes("cpu")), "source": "RAM that is free now"}


def parse_size(text: str) -> int:
    """`24GiB` -> bytes.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = "" if found is None else found.group(2).upper()
    unit = {"K": "KIB", "M": "MIB", "G": "GIB", "T": "TIB"}.get(unit, unit)
    if found is None or unit not in UNITS or float(found.group(1)) == 0:
        raise UsageError(f"--device: {text!r} is no size; write it as 24GiB or 80GB")
    return int(float(found.group(1)) * UNITS[unit])


def _seconds(recipe: Recipe, rate: Rate | None) -> float | None:
    """How long the training takes at a rate, where the recipe says how many steps it has."""
    settings = recipe.train
    if rate is None or settings.max_steps is None:
        return None
    tokens = settings.batch_size * settings.gradient_accumulation * settings.max_length
    return settings.max_steps * tokens / rate["tokens_per_second"]


def _assumptions(recipe: Recipe, undecided: bool, where: Device) -> list[str]:
    settings = recipe.train
    found = [ASSUMED.format(rows=settings.batch_size, length=settings.max_length)]
    found.append(f"evaluation is in batches of {recipe.eval.batch_tokens} tokens; a cache of generation is left out")
    if undecided:
        found.append("ranks are the recipe's, before a planner that looks at weights or data has had its say")
    if recipe.model.compile:
        found.append("the model is planned as it runs without torch.compile")
    if where["kind"] == "cuda":
        found.append("what the allocator leaves unused between blocks is left out; a few percent are usual")
    return found
