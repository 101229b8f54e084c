"""`Run`: the only mutable object of a training. Callbacks change it, the loop reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter
from lrft.core.analysis import Weights
from lrft.core.batch import Batch
from lrft.core.callback import EVENTS, Callback
from lrft.core.params import ParamInfo
from lrft.core.privacy import Privacy
from lrft.core.schedule import Stepped
from lrft.core.settling import Settling
from lrft.core.team import ALONE, Accelerator, Team
from lrft.ops.draws import seed_generators
from lrft.ops.loss import Head
from lrft.ops.native import Kernels


class LanguageModel(Protocol):
    """What objectives and evaluation need of a model; `lrft.model` provides it."""

    @property
    def head(self) -> Head:
        """The map from hidden states to logits."""

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, d) of every position, final norm included."""

    def scores(self, batch: Batch) -> Tensor:
        """Scores (documents, labels) in float32 of the last token of every document, by the model's score head."""

    def embeddings(self, batch: Batch) -> Tensor:
        """Unit vectors (documents, d) in float32: the last hidden state of the last token of every document."""


@dataclass(eq=False, repr=False)
class Run:
    """Everything one training holds.

    Attributes:
        model: the language model, adapters attached: an `nn.Module` that is a `LanguageModel`.
        parameters: every trainable parameter with its role.
        accelerator: where several processes train together; None in a run that nobody launched.
        recipe: what the run was built from, for whoever built it.
        sites: every adapted site with its module path.
        step: finished optimizer steps.
        generator: CPU generator, seeded anew each step from (seed, step), for draws that change what processes share;
            never for those of a micro-batch, of which processes compute different ones.
        metrics: what the last step recorded; loggers read it.
        summary: plain values for result.json, such as the ranks an allocation ended with.
        penalized: adapters that add a penalty to the loss.
        settling: adapters that take a step of their own after every update.
        stopping: decided once a step, so that what is saved and what stops are the same step on every process.
        team: the processes that train together, as what is scored or cut into parts sees them.
        earlier_ends: steps after which the run was to end before it was extended, rising.
        tasks: name of each task that is learnt one after the other -> the finished steps at its end; empty where all
            rows are one.
        privacy: how gradients are bounded and hidden, or None.
        scaler: of the loss, where the activations are float16, else None.
        weights: the layers that train, for analyses; None where nobody gave them.
        score: summed loss and supervised tokens of each held-out row, for analyses; None where the run has none.
        rows: places in the data of the rows of the step that is taken, as far as this process has them.
        micro_batches: that step's batches, likewise.
        where: names such a row, `file:line` where files have lines.
        compiled: whether what is elementwise is compiled in the loss and its gradients.
        kernels: of this machine, for the loss and its gradients; None where there are none, or no use for them.
        closure: the mean loss of the step that begins, with gradients where they are on, for callbacks that try
            something on its rows; draws are those of the step itself. None before the first step.
    """

    model: Any
    parameters: Sequence[ParamInfo]
    optimizer: torch.optim.Optimizer
    schedule: Stepped
    total_steps: int
    seed: int = 0
    clip: float | None = None
    callbacks: Sequence[Callback] = ()
    folder: Path | None = None
    accelerator: Accelerator | None = None
    recipe: Any = None
    weights: Weights | None = field(default=None, kw_only=True)
    score: Callable[[], list[tuple[float, int]]] | None = field(default=None, kw_only=True)
    team: Team = field(default=ALONE, kw_only=True)
    privacy: Privacy | None = field(default=None, kw_only=True)
    scaler: torch.amp.GradScaler | None = field(default=None, kw_only=True)
    compiled: bool = field(default=False, kw_only=True)
    kernels: Kernels | None = field(default=None, kw_only=True)
    earlier_ends: tuple[int, ...] = field(default=(), kw_only=True)
    tasks: dict[str, int] = field(default_factory=dict, kw_only=True)
    where: Callable[[int], str] = field(default="row {}".format, kw_only=True)
    rows: tuple[int, ...] = field(init=False, default=())
    micro_batches: Sequence[Batch] = field(init=False, default=())
    closure: Callable[[], Tensor] | None = field(init=False, default=None)
    sites: list[tuple[str, Adapted]] = field(init=False)
    penalized: list[Adapter] = field(init=False)
    settling: list[Settling] = field(init=False)
    generator: torch.Generator = field(init=False, default_factory=torch.Generator)
    step: int = field(init=False, default=0)
    metrics: dict[str, Any] = field(init=False, default_factory=dict)
    summary: dict[str, Any] = field(init=False, default_factory=dict)
    _told: int | None = field(init=False, default=None, repr=False)  # by another process
    stopping: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.sites = list(adapted(self.model))  # walking a deep model costs milliseconds, so it is done once
        self.penalized = [m.adapter for _, m in self.sites if type(m.adapter).penalty is not Adapter.penalty]
        self.settling = [m.adapter for _, m in self.sites if isinstance(m.adapter, Settling)]
        self.parameters = list(self.parameters)
        self.callbacks = list(self.callbacks)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.accelerator.process_index if self.accelerator is not None else 0

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes if self.accelerator is not None else 1

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes; where one trains alone, the values themselves."""
        if self.accelerator is None or self.processes == 1:
            return values
        return self.accelerator.reduce(values, reduction="sum")

    @property
    def stop_signal(self) -> int | None:
        """Number of the signal that asked to stop, here or elsewhere, or None. Polled wherever time is spent."""
        return self._told or stop.asked()

    @stop_signal.setter
    def stop_signal(self, number: int | None) -> None:
        self._told = number

    @property
    def device(self) -> torch.device:
        """Where the trainable parameters live."""
        return self.parameters[0].param.device

    @property
    def planned_steps(self) -> int:
        """The length of the run as it was planned when the coming step was: steps added later change none before."""
        return next((end for end in self.earlier_ends if self.step < end), self.total_steps)

    @property
    def at_an_end(self) -> bool:
        """Whether the step just finished is the last one, or was before the run was extended."""
        return self.step == self.total_steps or self.step in self.earlier_ends

    @property
    def at_a_border(self) -> bool:
        """Whether a task ended with the step just finished and another one begins with the next."""
        return self.step in list(self.tasks.values())[:-1]

    def adapted(self) -> Iterator[tuple[str, Adapted]]:
        """Every adapted site with its module path."""
        return iter(self.sites)

    def fire(self, event: str) -> None:
        """Tell every callback, in order."""
        assert event in EVENTS, event
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def record(self, **metrics: object) -> None:
        """Add to this step's metrics (numbers, or scalar tensors that a logger will read)."""
        self.metrics.update(metrics)

    def reset_optimizer(self, params: Iterable[nn.Parameter] | None = None) -> None:
        """Forget the optimizer state of `params`, or of everything."""
        for param in list(self.optimizer.state if params is None else params):
            self.optimizer.state.pop(param, None)

    def restart_schedule(self, warmup: int) -> None:
        """Warm the learning rate up anew over the coming `warmup` steps, to where the schedule then is."""
        self.schedule.restart(warmup)

    def seed_step(self) -> None:
        """Make every random draw of the coming step a function of (seed, step) alone, alike on every process.

        Nothing about random states then needs saving, and an evaluation between two steps cannot disturb them.
        """
        self.seed_draws(0)
        self.generator.manual_seed(self.seed * 1_000_003 + self.step)

    def seed_draws(self, index: int) -> None:
        """Seed what draws from torch's own generator (dropout, hidden tokens) for micro-batch `index` of the step.

        The index counts over all processes, so a micro-batch draws the same wherever it is computed.
        """
        seed_generators(self.seed_of_draws(index))

    def seed_of_draws(self, index: int) -> int:
        """The seed of the draws of micro-batch `index` of the step."""
        return (self.seed * 1_000_003 + self.step) * 1_009 + index
