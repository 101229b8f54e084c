"""IncreLoRA: ranks that grow where the update matters."""

from __future__ import annotations

import math
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.run import Run
from lrft.methods.allocate._dynamic import Dynamic, factors, orthogonality, regularize
from lrft.methods.allocate._growth import Growable, growable, growth_steps
from lrft.methods.allocate._importance import Importance, ImportanceState
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, MethodConfig, Sequence

RESERVED = 1e-5  # E of a component that learns in advance


class State(TypedDict):
    """What a resume needs."""

    importance: ImportanceState
    ranks: dict[str, int]


@ALLOCATORS.register
class IncreLoRA(Dynamic):
    """Incremental allocation: every site starts at a low rank, and the most important sites grow.

        dW   = c B diag(E) A,  c = alpha / (live rank + 1e-5)
        I    = sum |dW * dL/d(dW)| / sqrt(out in)
        Ibar = b1 Ibar + (1 - b1) I,  U = b2 U + (1 - b2) |I - Ibar|
        at step t > init_warmup with t mod interval = 0:  the top_h sites of highest Ibar U grow by increment
        loss += orthogonality * mean over all A and B of ||A A^T - I||_F,  B^T for B, reserves included

    with t the finished steps, b1 = `beta1`, b2 = `beta2`, init_warmup = `init_warmup` (default a hundredth of the run),
    interval = `interval`, top_h = `top_h`, increment = `increment` (default half of `target_rank`),
    orthogonality = `orthogonality`. Every site starts at `start_rank`, and it goes on until the ranks sum up to
    `target_rank` * sites. I is taken before the optimizer's step, from the gradient of the whole step. Growing from r
    to r' also scales what the site had learnt by r / r'. `advance: true` (advance learning): a site holds increment
    reserves whose A, B ~ N(0, 0.02^2) train while their E = 1e-5 does not; growing lets the reserves' E train, from the
    next step on, and draws new reserves; after the last growth the reserves' E are 0. The penalty is as in the authors'
    trainer.

    Shapes: A (r, in), E (r), B (out, r) of `adapter: svd_lora`, r = `adapter.rank`, of which the live rank is shown.
    The first reserves come with the first gradient, so the function at step 0 is untouched.
    Trains: of the adapter, the components that are live, and A and B of the reserves.
    State: two numbers a site and its rank. While it grows, the gradient of every dW is held (4 in out bytes).
    Source: Zhang et al., "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning",
    2023, arXiv 2308.12043, and the authors' code.
    Departures: a site cannot outgrow `adapter.rank`; where fewer than top_h sites can grow, the best of them grow
    twice. Of equal scores the first sites grow, so that the budget is met exactly. Micro-batches and processes are
    summed before the product (the code keeps the last micro-batch's score). New components follow the run's schedule,
    where the code's new parameter groups keep the constant base rate; their moments start at 0, with the bias
    correction of the whole tensor. By default the growth ends after a third of the run, as in the published MNLI
    setting.
    """

    aliases = {
        "increlora": "adapter: svd_lora\nallocate: increlora",
    }
    requires = {"elastic", "backward", "clippable", "one_stage"}

    config: Config

    class Config(MethodConfig):
        target_rank: int = Field(2, gt=0, le=65_536, description="average rank of a site at the end")
        start_rank: int = Field(1, gt=0, le=65_536, description="rank of every site at the start")
        increment: int | None = Field(
            None, gt=0, description="components a site gains at a time; by default half of target_rank"
        )
        top_h: int = Field(2, gt=0, description="sites that grow at a time")
        init_warmup: int | None = Field(
            None, ge=0, description="steps before anything grows; by default a hundredth of the run"
        )
        interval: int | None = Field(
            None,
            gt=0,
            description="steps from growth to growth; by default such that the last is at a third of the run",
        )
        advance: bool = Field(True, description="train the components that come next in advance")
        beta1: float = Field(0.85, gt=0, lt=1, description="decay of the average importance")
        beta2: float = Field(0.85, gt=0, lt=1, description="decay of its uncertainty")
        orthogonality: float = Field(0.1, ge=0, description="weight of ||A A^T - I|| and ||B^T B - I||")

        @property
        def gained(self) -> int:
            """Components a site gains at a time."""
            return self.increment or max(1, self.target_rank // 2)

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse growths that do not fit into the run, once the sites are known."""
            if ranks:
                from lrft.methods.allocate._growth import growth_steps  # not needed to check a recipe

                growth_steps(self, self.gained, list(ranks), total_steps)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.importance = Importance(config.beta1, config.beta2)
        self.growable: dict[str, Growable] = {}
        self.increment = config.gained
        self.init_warmup, self.interval = 0, 1
        self.loss_scale = 1.0

    def start(self, run: Run) -> None:
        fresh = not self.ranks
        super().start(run)
        self.growable = {site: growable(adapter) for site, adapter in self.adapters.items()}
        if fresh:
            self.ranks = dict.fromkeys(self.adapters, self.config.start_rank)
        self.init_warmup, self.interval = growth_steps(
            self.config, self.increment, self.capacities, run.total_steps
        )
        self.importance.prepare({site: torch.zeros((), device=run.device) for site in self.adapters})
        if fresh:
            for site in self.adapters:
                self._show(site, reserves=False)
        if self.config.orthogonality:
            share = self.config.orthogonality / (2 * len(self.adapters))
            regularize(self.adapters, partial(orthogonality, weight=share))
        self._watch(self.growing)

    @property
    def growing(self) -> bool:
        """Whether the target is not reached yet."""
        return sum(self.ranks.values()) < self.target

    def before_step(self, run: Run) -> None:
        # The gradients of delta W are no parameters', so nobody else takes the loss scale off them.
        self.loss_scale = 1.0 if run.scaler is None else run.scaler.get_scale()

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for (
            site,
            adapter,
        ) in self.adapters.items():  # before clipping and the moments see a frozen number's gradient
            gradient = factors(adapter)[1].grad
            if gradient is not None:
                gradient[self._reserves(site)] = 0
        if not self.growing:
            return
        sensitivity = self._sensitivity(run)
        # Only float16 overflows in a run that goes on; elsewhere nothing waits for the device.
        if run.scaler is None or all(map(math.isfinite, torch.stack(list(sensitivity.values())).tolist())):
            self.importance.update(sensitivity)
        if run.step == 0:
            for site in self.adapters:
                self._reserve(site, run.generator)
        if run.step > self.init_warmup and run.step % self.interval == 0:
            self._grow(run)

    def after_step(self, run: Run) -> None:
        """Hold the reserves where they are: momentum and weight decay move parameters without a gradient."""
        self._pin()

    @torch.no_grad()
    def _pin(self) -> None:
        value = RESERVED if self.growing else 0.0
        for site, adapter in self.adapters.items():
            factors(adapter)[1][self._reserves(site)] = value

    def _sensitivity(self, run: Run) -> dict[str, Tensor]:
        """Site -> I, from the gradients collected in this step."""
        found = {}
        for site, adapter in self.growable.items():
            change, gradient = adapter.composed(), adapter.take_gradient()
            gradient = run.summed(torch.zeros_like(change) if gradient is None else gradient)
            found[site] = (change * gradient).abs().sum() / (math.sqrt(change.numel()) * self.loss_scale)
        return found

    def _grow(self, run: Run) -> None:
        sites = list(self.adapters)
        scores = torch.stack([self.importance.score(site) for site in sites])
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        left = self.config.top_h
        while left:  # once, unless fewer sites than that have room
            for site in [sites[index] for index in order]:
                if left and self.ranks[site] + self.increment <= self.adapters[site].capacity:
                    left -= 1
                    self.ranks[site] += self.increment
                    self._reserve(site, run.generator)
        if not self.growing:
            self._watch(False)
            self._pin()
        live = [torch.arange(adapter.capacity) < self.ranks[site] for site, adapter in self.adapters.items()]
        self.decided(run, torch.cat(live), scores, budget=self.target)

    def _reserves(self, site: str) -> slice:
        """The components that learn in advance at a site; none where it cannot grow."""
        live = self.ranks[site]
        fits = self.config.advance and live + self.increment <= self.adapters[site].capacity
        return slice(live, live + self.increment if fits else live)

    def _reserve(self, site: str, generator: torch.Generator) -> None:
        """Draw what is shown next at a site: its new reserves, or without them its new components."""
        adapter = self.adapters[site]
        A, E, B = factors(adapter)
        new = self._reserves(site)
        if not self.config.advance:
            shown = int(adapter.mask.sum())
            new = slice(shown, self.ranks[site])
        A[new] = (0.02 * torch.randn(A[new].shape, generator=generator)).to(A.device)
        B[:, new] = (0.02 * torch.randn(B[:, new].shape, generator=generator)).to(B.device)
        E[new] = RESERVED if self.config.advance else 0.0
        self._show(site)

    def _show(self, site: str, reserves: bool = True) -> None:
        """Show a site's live components and its reserves, and scale it for its live rank."""
        adapter = self.adapters[site]
        shown = self._reserves(site).stop if reserves else self.ranks[site]
        adapter.show(torch.arange(adapter.capacity, device=adapter.mask.device) < shown)
        self.growable[site].scale_for(self.ranks[site])

    def _watch(self, on: bool) -> None:
        for adapter in self.growable.values():
            adapter.watch = on

    def state_dict(self) -> State:
        return {"importance": self.importance.state_dict(), "ranks": self.ranks}

    def load_state_dict(self, state: State) -> None:
        self.importance.load_state_dict(state["importance"])
        self.ranks = dict(state["ranks"])
