"""What of a training lies elsewhere than where it computes, and what that does not go together with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.registry.config import Field, Literal, Section
from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView

NONE = "none"
PARTS = ("weights", "activations", "optimizer")


class OffloadSection(Section):
    """What a training keeps elsewhere, in pages that come before they are used and go after; no number changes."""

    weights: Literal["none", "host", "disk"] = Field(
        "none",
        description="frozen base weights as they are stored, block by block, with the next block on its way; disk: in "
        "a file that goes with the process",
    )
    activations: Literal["none", "host", "disk"] = Field(
        "none",
        description="what model.activation_checkpointing: true keeps, the input of every layer, written behind the "
        "forward pass and read ahead of the backward pass",
    )
    optimizer: Literal["none", "host", "disk"] = Field(
        "none",
        description="the optimizer's state, stepped a block of the model at a time, the next one's on its way",
    )
    folder: str | None = Field(
        None, min_length=1, description="where on a disk, such as a fast local one; null for the run folder"
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """What lies elsewhere."""
        return tuple(part for part in PARTS if getattr(self, part) != NONE)


def _asked(settings: RecipeView) -> dict[str, str]:
    """Key -> where, of what is to lie elsewhere."""
    places = {f"offload.{part}": str(settings[f"offload.{part}"]) for part in PARTS}
    return {key: place for key, place in places.items() if place != NONE}


def _where_it_computes(settings: RecipeView) -> Iterator[Problem]:
    """One of a CPU's reasons and one of a GPU's, where the recipe says which; else the start of the run says it."""
    for key, place in _asked(settings).items():
        if message := why_not(place, str(settings["train.device"])):
            yield Problem(key, message)
    if settings["offload.folder"] is not None and not _asked(settings):
        yield Problem("offload.folder", "nothing lies there; write offload.weights: disk, or remove it")


def why_not(place: str, device: str) -> str:
    """Why nothing can lie at `place` while `device` computes; empty where it can, or where that is not known yet."""
    if place == "host" and device == "cpu":
        return "a CPU computes in the host's memory, so nothing would be elsewhere; write disk"
    if device == "cuda":
        return "is written for a CPU; on a GPU write none, and train.shard_base: true over several processes"
    return ""


def _of_weights(settings: RecipeView) -> Iterator[Problem]:
    key = "offload.weights"
    if settings[key] == NONE:
        return
    if settings["trainable.weights"] == "full":
        yield Problem(key, "is about frozen weights, and with trainable: full none is frozen; write none")
    if settings["train.shard_base"] is True:
        yield Problem(key, "a base is cut over processes or lies on a disk; write none, or shard_base: false")
    if settings["model.experts"] == "split":
        message = (
            "experts that are taken apart are put into one tensor in memory; write none, or experts: whole"
        )
        yield Problem(key, message)


def _of_activations(settings: RecipeView) -> Iterator[Problem]:
    key = "offload.activations"
    if settings[key] == NONE:
        return
    if settings["model.activation_checkpointing"] is not True:
        message = (
            "is about what a recomputed layer keeps; write model.activation_checkpointing: true, or none"
        )
        yield Problem(key, message)
    optimizer = settings.declared("optimizer")
    if optimizer is not None and "backward" not in optimizer.requires:
        yield Problem(
            key, f"{optimizer.name} makes no backward pass, so no activation is kept for one; write none"
        )


def _of_the_optimizer(settings: RecipeView) -> Iterator[Problem]:
    key, optimizer = "offload.optimizer", settings.declared("optimizer")
    if settings[key] == NONE or optimizer is None:
        return
    if "per_parameter" not in optimizer.provides:
        message = (
            f"the update of {optimizer.name} looks at several parameters at once, so all state is there at "
        )
        yield Problem(key, f"{message}once; write none")
    if settings["optimizer.per_layer"] is True:
        yield Problem(key, "optimizer.per_layer steps within the backward pass; write one of the two")
    if settings["trainable.update"] == "stochastic":
        yield Problem(
            key, "stochastic rounding draws for all parameters of a step together; write master or in_place"
        )


def _compiled(settings: RecipeView) -> Iterator[Problem]:
    for key in _asked(settings):
        if settings["model.compile"] is True and key != "offload.optimizer":
            yield Problem(key, "nothing comes and goes within compiled code; write none, or compile: false")


OFFLOAD_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _where_it_computes,
    _of_weights,
    _of_activations,
    _of_the_optimizer,
    _compiled,
)
