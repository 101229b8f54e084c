"""`lrft train --dry-run`: everything checked, counted and estimated, no weights loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from lrft.api.planning import fit
from lrft.build.activations import activation_bytes, not_estimated
from lrft.build.asked_once import ask_adapter
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.in_turn import tasks_of
from lrft.build.measure import measure
from lrft.build.measured import MatrixShares, Measured, Peak, Target
from lrft.build.recomputing import Recomputing, as_written, choose, free_bytes
from lrft.build.resident import state_held, weights_held
from lrft.build.starting_plan import plan_without_weights
from lrft.build.steps import check_steps, possible_steps, shapes_of, train_data
from lrft.build.teacher import plan_teacher
from lrft.build.text import check_text
from lrft.core.stages import ranks_of
from lrft.data.steps import Shape, TrainData
from lrft.model.backend import keeps_apart
from lrft.model.causal_lm import CausalLM
from lrft.model.described import DRY_RUN, UnknownFamily
from lrft.model.liger import check_liger
from lrft.model.load import DTYPES, load_model
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json
from lrft.training.private import sum_bytes


class Checked(TypedDict):
    """What training would do, counted and estimated; `tasks` are those of a sequence, with the last step of each."""

    recipe_hash: str
    data: dict[str, Json]
    steps: int
    tasks: NotRequired[dict[str, int]]
    targets: list[Target]
    matrices: MatrixShares
    base_parameters: int
    trainable_parameters: int
    trainable_percent: float
    ranks_undecided: bool
    recomputed_layers: int
    recomputed_why: str
    memory_bytes: dict[str, int]
    peaks: dict[str, Peak] | None
    memory: str


class Plan(Checked):
    """The same with the recipe's name."""

    recipe: str


def plan(
    recipe: LoadedRecipe | Path | str, trust_remote_code: bool = False, *, overrides: Sequence[str] = ()
) -> Plan:
    """The plan of a recipe as plain values: data, steps, targets, exact counts, bytes.

    Parameter counts and optimizer bytes are read off the modules and the optimizer that training would build;
    activation bytes are an estimate and say so.

    Raises:
        RecipeError, DataError: what training would raise before its first step.
    """
    loaded = with_format(as_loaded(recipe, overrides))
    if loaded.recipe.model.liger:
        check_liger(torch.device(_device(loaded.recipe)))
    return {"recipe": loaded.name, **_plan(loaded.recipe, trust_remote_code)}


def _plan(recipe: Recipe, trust_remote_code: bool) -> Checked:
    text = read_text(recipe, trust_remote_code=trust_remote_code)
    check_text(text, recipe)
    beside = plan_teacher(recipe, text, trust_remote_code)
    device = _device(recipe)
    model = load_model(recipe.model, device=device, trust_remote_code=trust_remote_code, meta=True)
    packing = recipe.train.packing
    if packing is None and not model.takes_positions:
        packing = False  # nothing tells such a model where a document begins
    join = model.takes_positions and keeps_apart(model, recipe.model)
    data = train_data(recipe, text, packing=packing, join=join)
    steps = data.total_steps(recipe.train.max_steps, recipe.train.epochs)
    possible = [steps] if packing is not None else possible_steps(recipe, text)
    adaptation = plan_without_weights(recipe, model)
    ask_adapter(recipe, adaptation)
    _check_steps(recipe, possible, () if adaptation.undecided else ranks_of(adaptation.plan))
    counted = measure(recipe, model)
    shapes = set(shapes_of(recipe, data))
    again = _recomputed(recipe, model, counted, shapes, device, beside)
    peaks, sentence = _peaks(recipe, shapes, trust_remote_code)
    found: Checked = {
        "recipe_hash": recipe_hash(recipe),
        "data": text.record(),
        "steps": _length(recipe, steps),
        "targets": counted["targets"],
        "matrices": counted["matrices"],
        "base_parameters": counted["base"],
        "trainable_parameters": counted["trainable"],
        "trainable_percent": counted["trainable_percent"],
        "ranks_undecided": counted["ranks_undecided"],
        "recomputed_layers": again.layers,
        "recomputed_why": again.sentence(),
        "memory_bytes": memory_bytes(recipe, model, counted, shapes, again.layers, beside),
        "peaks": peaks,
        "memory": "; ".join(filter(None, (sentence, not_estimated(model.hf.config.get_text_config())))),
    }
    return _with_tasks(found, data)


def _recomputed(
    recipe: Recipe, model: CausalLM, counted: Measured, shapes: set[Shape], device: str, beside: int
) -> Recomputing:
    """Which layers are computed again: as the recipe says, or as many as the device asks for."""
    if recipe.model.activation_checkpointing != "auto":
        return as_written(recipe, model)
    rest = memory_bytes(recipe, model, counted, shapes)
    taken = beside + rest["total_estimated"] - rest["activations_estimated"] - rest["attention_estimated"]
    return choose(recipe, model, shapes, free_bytes(device), taken)


def _with_tasks(found: Checked, data: TrainData) -> Checked:
    if tasks := tasks_of(data):
        found["tasks"] = tasks
    return found


def _check_steps(recipe: Recipe, possible: Sequence[int], ranks: Sequence[int]) -> None:
    """Refuse settings that do not fit; of a federation, whose clients know how long they are, when it begins."""
    if recipe.federate is None:
        check_steps(recipe, possible, ranks)


def _length(recipe: Recipe, steps: int) -> int:
    """Steps with those that were added; of a federation, rounds."""
    if recipe.federate is not None:
        return recipe.federate.rounds
    return steps + sum(extension.steps for extension in recipe.train.extended)


def _peaks(recipe: Recipe, shapes: set[Shape], trusted: bool) -> tuple[dict[str, Peak] | None, str]:
    """What `lrft plan` says of these rows; none of a family that it does not know layer by layer, and why."""
    where = fit.device_of(recipe, None)
    try:
        found, _ = fit.forecast(recipe, where, list(shapes), trusted)
    except UnknownFamily as error:
        return None, f"{str(error).removesuffix(DRY_RUN)}: the total is an estimate"
    return found.by_use(), fit.sentence(recipe, where, found) if found.train["total"] > where["bytes"] else ""


def _device(recipe: Recipe) -> str:
    """Where the recipe would train here."""
    return "cuda" if recipe.train.device != "cpu" and torch.cuda.is_available() else "cpu"


def memory_bytes(
    recipe: Recipe,
    model: CausalLM,
    counted: Measured,
    shapes: Iterable[Shape] = (),
    recomputed: int | None = None,
    beside: int = 0,
) -> dict[str, int]:
    """What takes how many bytes in training, and `total_estimated`; activations are the estimate in it.

    Args:
        model: the base model without weights.
        counted: what `measure` says of the recipe.
        shapes: of the micro-batches; without any, rows are one document of `train.max_length` each.
        recomputed: layers that are computed again; by default as the recipe says, with `auto` none.
        beside: bytes of the objective's teacher.
    """
    activations = activation_bytes(recipe, model, shapes, recomputed)
    config = model.hf.config.get_text_config()
    head = config.vocab_size * config.hidden_size * DTYPES[recipe.model.dtype].itemsize
    ends = head if config.tie_word_embeddings else 2 * head
    linear, other = weights_held(recipe, counted, config.num_hidden_layers, head, ends)
    memory = {
        "linear_weights": linear,
        "other_weights": other,
        **({"teacher": beside} if beside else {}),
        "adapter": counted["trainable_bytes"],
        "gradients": counted["gradient_bytes"],
        **({} if recipe.privacy is None else {"gradient_sums": sum_bytes(counted["trainable"])}),
        "optimizer_state": state_held(recipe, counted["optimizer_bytes"], config.num_hidden_layers),
        "activations_estimated": activations.blocks,
        "attention_estimated": activations.attention,
    }
    return {**memory, "total_estimated": sum(memory.values())}
