"""`Run`: the only mutable object of a training. Callbacks change it, the loop reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter
from lrft.core.analysis import Weights
from lrft.core.batch import Batch
from lrft.core.callback import EVENTS, Callback
from lrft.core.params import ParamInfo
from lrft.ops.loss import Head


class LanguageModel(Protocol):
    """What objectives and evaluation need of a model; `lrft.model` provides it."""

    @property
    def head(self) -> Head:
        """The map from hidden states to logits."""

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, d) of every position, final norm included."""


class Schedule(Protocol):
    """A learning-rate schedule, stepped once per optimizer step."""

    def step(self) -> None:
        """Move to the next step's rates."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""

    def restart(self, warmup: int) -> None:
        """Fall to zero now and rise within `warmup` steps to where the schedule then is."""

    def repeat(self, begins: list[int]) -> None:
        """Run through the whole schedule between each of these steps and the next."""


class Run:
    """Everything one training holds.

    Attributes:
        model: the language model, adapters attached: an `nn.Module` that is a `LanguageModel`.
        optimizer: a `torch.optim.Optimizer`.
        parameters: every trainable parameter with its role.
        step: finished optimizer steps.
        generator: CPU generator, seeded anew each step from (seed, step), for draws that change what processes share;
            never for those of a micro-batch, of which processes compute different ones.
        metrics: what the last step recorded; loggers read it.
        summary: plain values for result.json, such as the ranks an allocation ended with.
        penalized: adapters that add a penalty to the loss.
        stopping: decided once a step, so that what is saved and what stops are the same step on every process.
        scaler: `torch.amp.GradScaler` where the activations are float16, else None.
        weights: the layers that train, for analyses; None where nobody gave them.
        score: summed loss and supervised tokens of each held-out row, for analyses; None where the run has none.
        stop_signal: number of the signal that asked to stop, or None. Polled wherever time is spent.
    """

    def __init__(
        self,
        model: Any,
        parameters: Sequence[ParamInfo],
        optimizer: Any,
        schedule: Schedule,
        total_steps: int,
        seed: int = 0,
        clip: float | None = None,
        callbacks: Sequence[Callback] = (),
        folder: Path | None = None,
        accelerator: Any = None,
        recipe: Any = None,
    ) -> None:
        self.model = model
        self.sites = list(adapted(model))  # walking a deep model costs milliseconds, so it is done once
        self.penalized = [m.adapter for _, m in self.sites if type(m.adapter).penalty is not Adapter.penalty]
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.seed = seed
        self.clip = clip
        self.callbacks = list(callbacks)
        self.folder = folder
        self.accelerator = accelerator
        self.recipe = recipe
        self.step = 0
        self.generator = torch.Generator()
        self.metrics: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.stop_signal: int | None = None
        self.stopping = False
        self.scaler: Any = None
        self.weights: Weights | None = None
        self.score: Callable[[], list[tuple[float, int]]] | None = None

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.accelerator.process_index if self.accelerator is not None else 0

    @property
    def device(self) -> torch.device:
        """Where the trainable parameters live."""
        return self.parameters[0].param.device

    def adapted(self) -> Iterator[tuple[str, Adapted]]:
        """Every adapted site with its module path."""
        return iter(self.sites)

    def fire(self, event: str) -> None:
        """Tell every callback, in order."""
        assert event in EVENTS, event
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def record(self, **metrics: Any) -> None:
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
        torch.manual_seed((self.seed * 1_000_003 + self.step) * 1_009 + index)
