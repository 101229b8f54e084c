"""The decoder layers of a run's parameters, and which of all its parameters train in a step."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.registry.errors import RecipeError


def layers(run: Run) -> list[list[ParamInfo]]:
    """The trainable parameters of each decoder layer, in the order of the layers.

    Raises:
        RecipeError: none stands in a layer, or the optimizer moves weights without gradients.
    """
    if contract_of(run.optimizer).calls_closure:
        message = (
            "a selection decides which gradients are computed, and this optimizer computes none; write null"
        )
        raise RecipeError(message, "select")
    found: dict[str, list[ParamInfo]] = {}
    for info in run.parameters:
        if info.block:
            found.setdefault(info.block, []).append(info)
    if not found:
        message = "names no weight of a decoder layer, so there is nothing to select; write full"
        raise RecipeError(message, "trainable.weights")
    return [found[block] for block in sorted(found, key=_depth)]


def train_only(run: Run, active: Iterable[nn.Parameter]) -> None:
    """Let `active` require gradients, and no other parameter of the run."""
    chosen = set(active)
    for info in run.parameters:
        info.param.requires_grad_(info.param in chosen)


def train_all(run: Run) -> None:
    """Let every parameter of the run require gradients again: what is saved and counted is the whole set."""
    for info in run.parameters:
        info.param.requires_grad_(True)


def drop_gradients(run: Run) -> None:
    """Drop what a sum over processes gave to parameters that do not train in this step."""
    for info in run.parameters:
        if not info.param.requires_grad:
            info.param.grad = None


def _depth(block: str) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", block)], block
