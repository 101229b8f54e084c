"""What of a recipe cannot be trained by clients, though every section is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lrft.recipe.fixed import check_fixed
from lrft.registry.axes import AGGREGATORS, AXES
from lrft.registry.choice import parse_choice
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import Problem
from lrft.registry.json import to_section
from lrft.registry.section import RecipeView
from lrft.registry.traits import TRAITS

KEY = "federate"
# Key -> the value without which clients cannot train, and why.
FIXED: dict[str, tuple[object, str]] = {
    "restart": (None, "folds a change into a base that all clients share; write null"),
    "select": (None, "counts the steps of one run, and every client's is begun anew; write null"),
    "prune": (None, "counts the steps of one run, and every client's is begun anew; write null"),
    "train.max_steps": (None, "the length is said by federate.rounds and federate.local_steps; write null"),
    "train.epochs": (None, "the length is said by federate.rounds and federate.local_epochs; write null"),
    "train.stop_below": (None, "looks at the loss of one training; write null"),
    "train.extended": ([], "steps are added to one training; raise federate.rounds in a new one"),
    "train.shard_base": (False, "clients train one after the other in one process; write false"),
    "train.neftune": (None, "noise would be put on again by every client; write null"),
    "data.mix.order": ("mixed", "tasks in turn are one training's; write mixed"),
    **{
        f"offload.{part}": ("none", "what lies elsewhere is one training's; write none")
        for part in ("weights", "activations", "optimizer")
    },
    "optimizer.checkpoint": ("whole", "a record is of the steps of one training; write whole"),
    "objective.teacher": (None, "clients have no second model; leave it out"),
    "optimizer.per_layer": (False, "hooks of one client's optimizer would stay for the next; write false"),
}


def _federated(settings: RecipeView) -> Iterator[Problem]:
    if settings[KEY] is None:
        return
    yield from check_fixed(settings, FIXED)
    if isinstance(settings["analyse"], list) and settings["analyse"]:
        yield Problem("analyse", "looks at the steps of one training; leave it out")
    allocation = settings.declared("allocate")
    if allocation is not None and "one_stage" in allocation.requires:
        yield Problem(
            "allocate.method", f"{allocation.name} moves ranks while one model trains; write uniform"
        )
    if settings["model.dtype"] == "float16":
        yield Problem("model.dtype", "the scale of losses is one training's; write bfloat16 or float32")
    if settings["federate.local_steps"] is not None and settings["federate.local_epochs"] is not None:
        yield Problem(
            "federate.local_epochs", "a round has local_steps or local_epochs; remove one of the two"
        )
    how = settings["federate.partition"]
    by = how if isinstance(how, str) else settings["federate.partition.by"]
    column = None if isinstance(how, str) else settings["federate.partition.column"]
    if by == "column" and column is None:
        yield Problem("federate.partition.column", "says which column parts the rows; name one")
    if by == "even" and column is not None:
        yield Problem("federate.partition.column", "even shares look at no column; remove it")


def _taught(settings: RecipeView) -> Iterator[Problem]:
    objective = settings.declared("objective")
    if settings[KEY] is None or objective is None:
        return
    for trait in sorted({"draws", "replies"} & objective.provides):
        yield Problem("objective.method", f"{TRAITS[trait]}, which clients do not do; choose another")


def _aggregated(settings: RecipeView) -> Iterator[Problem]:
    """What the aggregator requires of the other parts, and what its own settings cannot work with."""
    if settings[KEY] is None:
        return
    chosen = settings["federate.aggregate"]
    method = str(to_section(chosen).get("method") if isinstance(chosen, dict) else chosen)
    if method not in AGGREGATORS.names():
        return  # which is said of the key itself
    declared = AGGREGATORS.declared(method)
    parts = [settings.declared(axis) for axis in AXES]
    provided = frozenset[str]().union(*(part.provides for part in parts if part is not None))
    for trait in sorted(declared.requires - provided):
        names = listed(settings.that_provide("adapter", trait), "or")
        yield Problem(
            "federate.aggregate.method",
            f"{declared.name} requires what no chosen part provides: {TRAITS.get(trait, trait)} ({trait}); choose "
            f"adapter {names}",
        )
    if "split" in declared.provides and settings["privacy"] is not None:
        message = f"{declared.name} sends what the blocks make of rows, which no noise is on; choose another"
        yield Problem("federate.aggregate.method", message)
    with suppress(ValidationError, PydanticCustomError):
        yield from parse_choice(AGGREGATORS, chosen).clashes(settings)


FEDERATE_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (_federated, _taught, _aggregated)
