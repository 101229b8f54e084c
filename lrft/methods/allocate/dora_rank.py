"""Dynamic rank distribution (the other DoRA): components pruned by their share of the update's norm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.elastic import Elastic
from lrft.core.run import Run
from lrft.core.stages import Evidence, Plan
from lrft.methods.allocate._dynamic import Dynamic, close, factors, gated_adapters, lowest, regularize
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, MethodConfig, Sequence
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    scores: Tensor | None
    pruned: Tensor | None
    ranks: dict[str, int]


@ALLOCATORS.register
class DoRARank(Dynamic):
    """Dynamic rank distribution (the other DoRA): components are pruned by their share of the update's norm.

        dW  = c sum_i z_i B_i A_i
        s_i = |z_i| ||B_i|| ||A_i|| / (||dW / c||_F + 1e-8),  S = beta S + (1 - beta) s  after every step
        p   = int(t - warmup T),  P = int(T (1 - warmup - final))
        after step t:  z_i = 0 for the floor((b_0 - b_T) (p / P)^3) components i of lowest S of the whole model
        loss += variance * (sum of the variances of A's rows and of B's columns, unbiased) / (2 b_0),  until P

    with A_i row i of A, B_i column i of B, t of the T steps; b_0 all components, b_T = sites * `target_rank`;
    beta = `beta`, warmup = `warmup`, final = `final`, variance = `variance`; c = alpha / r. Pruning happens for
    0 <= p <= P, every `every` steps and at P. No gradient is needed. What was pruned before P can grow again; after P
    the last mask is applied after every step.

    Shapes: A (r, in), B (out, r), z (r) = 0 at step 0, the E of `adapter: svd_lora`; S (components), 0 at first.
    Nothing changes at step 0.
    Trains: what the adapter trains, all of it in every step.
    State: S, one float32 number a component, and the final mask.
    Source: Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution", 2024, arXiv
    2405.17357, and the authors' code: adapter rank ceil(1.5 target_rank), alpha 8, dropout 0.1, A and B Kaiming with
    a = 0, which is what an adapter draws here unless its section says otherwise (`draw: kaiming`).
    Departures: the count is exact: the code prunes at least one component (also at p = 0) and all that tie with the
    last. The norms are formed from the r x r Gram matrices and not from r matrices (out, in); the numbers are equal.
    """

    aliases = {
        "dora_rank dynamic_rank_distribution": "adapter: svd_lora\nallocate: dora_rank",
    }
    requires = {"elastic", "one_stage"}

    config: Config

    class Config(MethodConfig):
        target_rank: int = Field(8, gt=0, le=65_536, description="average rank of a site at the end")
        warmup: float = Field(0.15, ge=0, lt=1, description="share of the run before pruning")
        final: float = Field(0.5, ge=0, lt=1, description="share of the run with the final ranks")
        every: int = Field(100, gt=0, description="steps between two prunings")
        beta: float = Field(0.9, ge=0, lt=1, description="decay of the averaged shares")
        variance: float = Field(0.1, ge=0, description="weight of the variance of A's rows and B's columns")

        def progress(self, step: int, total: int) -> tuple[int, int]:
            """The p after `step` steps, and P, with the rounding towards 0 of the authors' code."""
            return int(step - total * self.warmup), int(total * (1 - self.warmup - self.final))

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse shares that leave no step to prune in."""
            first, last = self.progress(total_steps, total_steps)
            if last < 1 or first < last:
                message = (
                    f"warmup {self.warmup:g} and final {self.final:g} leave no step of {total_steps} to prune in; "
                    "write lower shares, or train for longer"
                )
                raise RecipeError(message, "allocate.final")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scores: Tensor | None = None  # over all components of all sites
        self.pruned: Tensor | None = None  # of the last phase
        self.regularized: bool | None = None

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan, checked, with the published distribution of A and B where the recipe names none."""
        plan = super().plan(plan, evidence)
        free = [
            name for name, site in plan.items() if site.config and getattr(site.config, "draw", "") is None
        ]
        return plan | {name: plan[name].changed(draw="kaiming") for name in free}

    def start(self, run: Run) -> None:
        super().start(run)
        self.scores = torch.zeros(self.capacity, device=run.device) if self.scores is None else self.scores
        self.scores = self.scores.to(run.device)
        self.pruned = None if self.pruned is None else self.pruned.to(run.device)
        self.regularized = None

    def before_step(self, run: Run) -> None:
        now, last = self.config.progress(run.step + 1, run.total_steps)
        if self.regularized == (now <= last):
            return
        self.regularized = now <= last
        wanted = self.regularized and self.config.variance > 0
        penalty = partial(spread, weight=self.config.variance / (2 * self.capacity))
        regularize(self.adapters, penalty if wanted else None)

    def after_step(self, run: Run) -> None:
        now, last = self.config.progress(run.step, run.total_steps)
        if now > last:
            assert self.pruned is not None
            close(self.adapters, self.pruned)
            return
        assert self.scores is not None
        shares = torch.cat([norm_shares(adapter) for adapter in self.adapters.values()])
        self.scores.mul_(self.config.beta).add_(shares, alpha=1 - self.config.beta)
        if now < 0 or (now % self.config.every and now != last):
            return
        count = (self.capacity - self.target) * now**3 // last**3
        pruned = lowest(self.scores, count)
        close(self.adapters, pruned)
        self.decided(run, ~pruned, self.scores, budget=self.capacity - count)
        if now == last:
            self.pruned = pruned

    def state_dict(self) -> State:
        return {"scores": self.scores, "pruned": self.pruned, "ranks": self.ranks}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        capacity = sum(adapter.capacity for adapter in gated_adapters(run, self.name).values())
        scores, pruned = (torch.empty(capacity, dtype=dtype, device="meta") for dtype in (None, torch.bool))
        return {**super().kept_later(run), "scores": scores, "pruned": pruned}

    def load_state_dict(self, state: State) -> None:
        self.scores = None if state["scores"] is None else state["scores"].clone()
        self.pruned, self.ranks = state["pruned"], dict(state["ranks"])


@torch.no_grad()
def norm_shares(adapter: Elastic) -> Tensor:
    """(r,): the Frobenius norm of every component z_i B_i A_i over that of their sum."""
    A, z, B = factors(adapter)
    rows, columns = A @ A.mT, B.mT @ B
    whole = (z @ (rows * columns) @ z).clamp_min(0).sqrt()
    single = z.abs() * (rows.diagonal() * columns.diagonal()).sqrt()
    return single / (whole + 1e-8)


def spread(A: Tensor, B: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Weight times the sum of the variances of A's rows and of B's columns."""
    return weight * (A.var(dim=1).sum() + B.var(dim=0).sum())
