"""The section of a recipe whose steps are differentially private, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.recipe.fixed import check_fixed
from lrft.registry.config import Field, Literal, Section
from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView
from lrft.registry.traits import TRAITS

KEY = "privacy"
# Key -> the value without which the accounting would be of another training, and why.
FIXED: dict[str, tuple[object, str]] = {
    "restart": (None, "acts between steps in a way that nobody accounts for; write null"),
    "select": (None, "looks at gradients in a way that nobody accounts for; write null"),
    "prune": (None, "looks at rows in a way that nobody accounts for; write null"),
    "train.stop_below": (None, "would end the run by losses without noise; write null"),
    "train.shard_base": (False, "rows are taken one at a time in one process; write false"),
    "objective.teacher": (
        None,
        "what another model learnt from these rows is not accounted for; leave it out",
    ),
    "optimizer.per_layer": (False, "would step by gradients before they are bounded; write false"),
    "optimizer.checkpoint": ("whole", "a record of steps holds no noise; write whole"),
    "data.mix.order": (
        "mixed",
        "tasks in turn show some rows more often than the accounting says; write mixed",
    ),
}


class PrivacySection(Section):
    """Differential privacy of the training rows: each row's gradient is bounded, and their sum is hidden in noise."""

    clip: float = Field(
        1.0, gt=0, description="largest L2 norm of the gradient of one row, over everything that trains"
    )
    noise: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the noise on the sum of the bounded gradients, in units of clip",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="instead of noise: what all planned steps may come to, from which the noise follows",
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="of (epsilon, delta); has to be below one over the rows"
    )
    accountant: Literal["rdp", "prv"] = Field(
        "rdp",
        description="of Opacus: rdp by Renyi divergences, quick; prv by the loss itself, tighter and slower",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="of the rows of every step and of the noise; null: drawn from the system and kept in checkpoints, "
        "so that a run goes on and nobody else draws the noise again; a number repeats a run, and is for nobody else",
    )


def _private(settings: RecipeView) -> Iterator[Problem]:
    if settings[KEY] is None:
        return
    yield from check_fixed(settings, FIXED)
    if (settings["privacy.noise"] is None) == (settings["privacy.epsilon"] is None):
        yield Problem(KEY, "has noise, or epsilon from which it follows; write one of the two")
    if settings["train.packing"] is not False:
        yield Problem(
            "train.packing", "a row is bounded by itself, so it must be alone in its row; write false"
        )
    if settings["data.too_long"] == "windows":
        yield Problem(
            "data.too_long",
            "makes several rows of a long one, each bounded by itself, and one is accounted for; write drop or "
            "truncate_right",
        )
    if settings["model.dtype"] == "float16":
        yield Problem(
            "model.dtype", "the scale of losses follows what no noise is on; write bfloat16 or float32"
        )
    if isinstance(settings["analyse"], list) and settings["analyse"]:
        yield Problem("analyse", "looks at gradients in a way that nobody accounts for; leave it out")
    if settings["train.extended"] and settings["privacy.epsilon"] is not None:
        yield Problem(
            "train.extended",
            "the noise was found for the planned steps alone; train anew, or write privacy.noise",
        )
    yield from _methods(settings)


def _methods(settings: RecipeView) -> Iterator[Problem]:
    allocation = settings.declared("allocate")
    if allocation is not None and "one_stage" in allocation.requires:
        message = f"{allocation.name} moves ranks by what it sees of the rows; write uniform"
        yield Problem("allocate.method", message)
    optimizer = settings.declared("optimizer")
    if optimizer is not None and "backward" not in optimizer.requires:
        message = f"{optimizer.name} takes losses and no gradients, which are what is bounded; choose another"
        yield Problem("optimizer.method", message)
    objective = settings.declared("objective")
    for trait in sorted(
        {"draws", "replies", "compared"} & (objective.provides if objective is not None else set())
    ):
        message = f"{TRAITS[trait]}, and its loss is not of one row by itself; choose another"
        yield Problem("objective.method", message)


PRIVACY_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (_private,)
