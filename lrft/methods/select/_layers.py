"""The decoder layers of a run's parameters, and which of all its parameters train in a step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from lrft.core.callback import TimedMethod
from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.registry.config import MethodConfig, check_every
from lrft.registry.errors import RecipeError


class Selection(TimedMethod):
    """A method that lets a part of the parameters train for a while, and then another.

    Between two steps all of them require gradients, so that what is saved and counted is the whole set.

    Class attributes:
        early: by how many steps each part after the first begins before a multiple of `every`.
    """

    early: ClassVar[int] = 0

    class Config(MethodConfig):
        def refuse_one(self, every: int, total_steps: int, what: str, other: str = "") -> None:
            """Refuse a run that ends with the first part; `other` is what else would work.

            Raises:
                RecipeError: the run has no more steps than `every`.
            """
            so = f", so that one {what} alone would train"
            check_every(every, total_steps, "select.every", so, other)

    config: Config

    def after_backward(self, run: Run) -> None:
        drop_gradients(run)

    def after_step(self, run: Run) -> None:
        train_all(run)


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
