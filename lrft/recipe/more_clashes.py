"""More combinations of keys that cannot work though every section is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView


def _start_that_is_given(settings: RecipeView) -> Iterator[Problem]:
    if settings["model.adapter"] is None:
        return
    if settings["adapter"] is None:
        message = (
            "there is no adapter that could begin with it; choose one, or merge it and name the merged model"
        )
        yield Problem("model.adapter", message)
    elif settings["init"] is not None and settings["init.method"] != "default":
        yield Problem("init.method", "model.adapter says what the adapter begins with; leave init out")


def _extended_past_a_plan(settings: RecipeView) -> Iterator[Problem]:
    """What follows the whole run has done its part by the planned end; a loss that ended it would at once again."""
    if not settings["train.extended"]:
        return
    allocation = settings.declared("allocate")
    timed = [] if settings["restart"] is None else [f"restart {settings['restart.method']}"]
    timed += [f"allocate {allocation.name}"] if allocation and "one_stage" in allocation.requires else []
    timed += [] if settings["train.stop_below"] is None else ["train.stop_below"]
    if timed:
        message = (
            f"cannot be: {' and '.join(timed)} followed the run as it was planned; train anew for longer"
        )
        yield Problem("train.extended", message)


def _noise_in_compiled_code(settings: RecipeView) -> Iterator[Problem]:
    if settings["train.neftune"] is not None and settings["model.compile"] is True:
        yield Problem(
            "train.neftune", "its draws cannot be compiled; write model.compile: false, or remove it"
        )


MORE: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _start_that_is_given,
    _extended_past_a_plan,
    _noise_in_compiled_code,
)
