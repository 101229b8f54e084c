"""DyLoRA's draws: another rank in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.core.stages import Planner
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, Literal, MethodConfig
from lrft.registry.errors import RecipeError


@dataclass
class _Held:
    """One factor before a step: its directions lie along `dim`; those from `first` to `live` learn."""

    param: nn.Parameter
    dim: int
    first: int
    live: int
    value: Tensor
    state: dict[str, Tensor]


@ALLOCATORS.register
class DyLoRADraw(TimedMethod, Planner):
    """Train a nested adapter at a rank drawn anew for every step, one for the whole model.

        b ~ uniform {0 ... r - 1}, once per optimizer step
        W' = W + s_{b+1} B[:, :b+1] A[:b+1]

    with s_k the scale of an adapter of rank k: alpha / k, or alpha / sqrt(k) under rsLoRA. With `update: last`
    component b alone learns, those before it are constants; with `update: all` components 0 ... b learn. What does not
    learn in a step stays as it was: neither momentum nor weight decay moves it, and its moments wait. Where sites have
    several ranks, r is the largest, and a site uses as many of the b + 1 as it has.

    Shapes: A (r, in), B (out, r) of `adapter: dylora`. Changes nothing at step 0. In evaluation and on export the rank
    is r.
    Trains: of the adapter, the components that learn in the step.
    State: none, as b is a function of (seed, step); for the time of a step, a copy of A, B and their moments.
    Source: Valipour et al., "DyLoRA", EACL 2023, arXiv 2210.07558, and the authors' code, which trains with
    `update: last`.
    Departures: their optimizer goes on moving constant components by momentum and weight decay. Moments in 8 bits
    cannot wait by component and go on decaying; an optimizer's count of steps is that of all components.
    """

    requires = {"nested", "kept_base", "one_stage"}

    config: Config

    class Config(MethodConfig):
        update: Literal["last", "all"] = Field(
            "last", description="what learns in a step: the last of the directions in use, or all of them"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.held: list[_Held] = []

    def start(self, run: Run) -> None:
        if any(site.start is not None for _, site in run.adapted()):
            message = (
                "its start is a change that the base gave up at the full rank, and a lower one would miss it"
            )
            raise RecipeError(f"{message}; write default", "init.method")

    def before_step(self, run: Run) -> None:
        adapters = _nested(run)
        rank = max(adapter.config.rank for adapter in adapters)
        drawn = int(torch.randint(rank, (), generator=run.generator)) + 1
        self.held = []
        for adapter in adapters:
            live = min(drawn, adapter.config.rank)
            first = live - 1 if self.config.update == "last" else 0
            adapter.use(live, first)
            for name, dim in (("A", 0), ("B", 1)):
                param = adapter.get_parameter(name)
                if param.requires_grad:
                    state = {key: value.clone() for key, value in _entries(run, param)}
                    self.held.append(_Held(param, dim, first, live, param.detach().clone(), state))
        run.record(rank=drawn)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for held in self.held:
            _put_back(held.param, held.value, held)
            for key, value in _entries(run, held.param):
                if key in held.state:  # a first step starts with moments of 0, which zero gradients leave
                    _put_back(value, held.state[key], held)
        self.held = []

    def gradients_by(self, run: Run) -> int:
        """The step by which every tensor has had a gradient.

        With `last`, A has one when a direction is drawn again, which of r directions one is after r + 1 steps.
        """
        return 2 if self.config.update == "all" else max(a.config.rank for a in _nested(run)) + 1

    def finish(self, run: Run) -> None:
        for adapter in _nested(run):
            adapter.use(adapter.config.rank)


class Nested(Protocol):
    """What is asked of an adapter whose every prefix of components is one."""

    config: Ranked

    def get_parameter(self, target: str) -> nn.Parameter: ...

    def use(self, live: int, first: int = 0) -> None:
        """Train with the leading `live` directions, of which those below `first` are constants."""


class Ranked(Protocol):
    """Its settings."""

    @property
    def rank(self) -> int: ...


def _nested(run: Run) -> list[Nested]:
    return [cast(Nested, site.adapter) for _, site in run.adapted() if "nested" in site.adapter.provides]


def _entries(run: Run, param: nn.Parameter) -> list[tuple[str, Tensor]]:
    """What the optimizer keeps for each entry of `param`, by name."""
    state = run.optimizer.state.get(param, {})
    return [
        (key, value)
        for key, value in state.items()
        if torch.is_tensor(value) and value.shape == param.shape and value.is_floating_point()
    ]


def _put_back(now: Tensor, before: Tensor, held: _Held) -> None:
    """Set the directions that do not learn as they were."""
    for start, stop in ((0, held.first), (held.live, now.shape[held.dim])):
        now.narrow(held.dim, start, stop - start).copy_(before.narrow(held.dim, start, stop - start))
