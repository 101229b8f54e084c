"""AdaLoRA: one budget of rank components for the whole model, spent where they matter."""

from __future__ import annotations

from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.run import Run
from lrft.methods.allocate._dynamic import Dynamic, close, factors, lowest, orthogonality, regularize
from lrft.methods.allocate._importance import Importance, ImportanceState
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, MethodConfig, Sequence
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    importance: ImportanceState
    pruned: Tensor | None
    ranks: dict[str, int]


@ALLOCATORS.register
class AdaLoRA(Dynamic):
    """Adaptive budget allocation: singular values are pruned by importance under a shrinking budget.

        I    = |p * dL/dp|  of every number p of A, E, B
        Ibar = b1 Ibar + (1 - b1) I,  U = b2 U + (1 - b2) |I - Ibar|,  S = Ibar U
        S_k  = S(E_k) + mean_j S(A_kj) + mean_i S(B_ik)
        b(t) = floor(b_T + (b_0 - b_T) (1 - (t - t_init) / (T - t_init - t_final))^3)
        after step t:  E_k = 0 for the b_0 - b(t) components k of lowest S_k of the whole model
        loss += orthogonality * mean over all A and B of ||A A^T - I||_F,  not squared, B^T for B, in training alone

    with t of the T steps, counted from 1; b_0 all components, b_T = sites * `target_rank`; b1 = `beta1`, b2 = `beta2`,
    orthogonality = `orthogonality`. p is the value after the step, its gradient the clipped one before it. Nothing is
    pruned while t <= t_init = `t_init` (default T / 10); then it happens every `every` steps (default T / 100, at most
    100). A, B stay and E keeps its gradient, so a component can come back. For t > T - t_final, t_final = `t_final`
    (default T / 2), the last scores are kept and the same b_0 - b_T components are set to 0 after every step.

    Shapes: A (r, in), E (r), B (out, r) of `adapter: svd_lora`, r = `adapter.rank`. The function at step 0 is
    untouched.
    Trains: what the adapter trains, all of it in every step.
    State: Ibar and U, two float32 numbers for every number of the adapters; the final mask.
    Source: Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv 2303.10512, and
    the authors' code (the norm is not squared there, the paper squares it).
    Departures: of equal scores the first are pruned, so that the budget is met exactly (the code prunes all of them). t
    counts finished steps from 1, as in the paper; the authors' trainer counts from 0. What defaults to a share of the
    run follows the paper's MNLI setting: 8000, 50000 and 100 of 86000 steps.
    Advice: a run of dozens of steps stays at its start, see `adapter: svd_lora`, as it does with PEFT's AdaLoRA: over
    whole runs both have the same A, E, B and masks.
    """

    aliases = {
        "adalora": "adapter: svd_lora\nallocate: adalora",
    }
    requires = {"elastic", "backward", "clippable", "one_stage"}

    config: Config

    class Config(MethodConfig):
        target_rank: int = Field(8, gt=0, le=65_536, description="average rank of a site at the end")
        t_init: int | None = Field(
            None, ge=0, description="steps before pruning; by default a tenth of the run"
        )
        t_final: int | None = Field(
            None, gt=0, description="steps with the final ranks; by default half of the run"
        )
        every: int | None = Field(
            None,
            gt=0,
            description="steps between two prunings; by default a hundredth of the run, at most 100",
        )
        beta1: float = Field(0.85, gt=0, lt=1, description="decay of the average importance")
        beta2: float = Field(0.85, gt=0, lt=1, description="decay of its uncertainty")
        orthogonality: float = Field(0.1, ge=0, description="weight of ||A A^T - I|| and ||B^T B - I||")

        def phases(self, total: int) -> tuple[int, int, int]:
            """t_init, t_final and every in steps."""
            t_init = total // 10 if self.t_init is None else self.t_init
            t_final = max(1, total // 2) if self.t_final is None else self.t_final
            every = max(1, min(100, total // 100)) if self.every is None else self.every
            return t_init, t_final, every

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse phases that leave no step to prune in, or none to score."""
            t_init, t_final, _ = self.phases(total_steps)
            if t_init + t_final >= total_steps or total_steps - t_final < 2:
                message = (
                    f"{t_init} steps before pruning and {t_final} after it leave nothing of {total_steps} steps to "
                    "prune in; write t_init and t_final with a sum below the steps of the run, which must be 3 or more"
                )
                raise RecipeError(message, "allocate.t_init")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.importance = Importance(config.beta1, config.beta2)
        self.pruned: Tensor | None = None  # of the last phase, over all sites
        self.t_init, self.t_final, self.every = 0, 1, 1

    def start(self, run: Run) -> None:
        super().start(run)
        self.t_init, self.t_final, self.every = self.config.phases(run.total_steps)
        self.importance.prepare(self.parameters())
        self.pruned = None if self.pruned is None else self.pruned.to(run.device)
        if self.config.orthogonality:
            share = self.config.orthogonality / (2 * len(self.adapters))
            regularize(self.adapters, partial(orthogonality, weight=share))

    def after_step(self, run: Run) -> None:
        settled = run.total_steps - self.t_final
        if run.step < settled and not run.metrics.get("skipped"):
            self.importance.update(self.sensitivity())
        if run.step > settled:
            if self.pruned is None:
                self.pruned = self.prune(run)
            close(self.adapters, self.pruned)
        elif run.step > self.t_init and run.step % self.every == 0:
            close(self.adapters, self.prune(run))

    def parameters(self) -> dict[str, Tensor]:
        """Site + name -> A, E and B of every site."""
        return {
            f"{site}.{name}": parameter
            for site, adapter in self.adapters.items()
            for name, parameter in zip("AEB", factors(adapter), strict=True)
        }

    @torch.no_grad()
    def sensitivity(self) -> dict[str, Tensor]:
        """Site + name -> |p * dL/dp|; a parameter that something else froze in this step has none."""
        return {name: (p * p.grad).abs() for name, p in self.parameters().items() if p.grad is not None}

    def scores(self) -> Tensor:
        """The score of every component of every site, one after the other."""
        score = self.importance.score
        return torch.cat(
            [
                score(f"{site}.E") + (score(f"{site}.A").mean(dim=1) + score(f"{site}.B").mean(dim=0))
                for site in self.adapters
            ]
        )

    def budget(self, step: int, total: int) -> int:
        """Components of all sites that step `step` of `total` leaves."""
        t_init, t_final, _ = self.config.phases(total)
        return cubic_budget(step, self.capacity, self.target, t_init, t_final, total)

    def prune(self, run: Run) -> Tensor:
        """True at the components that this step's budget does not cover; recorded."""
        budget = self.budget(run.step, run.total_steps)
        scores = self.scores()
        pruned = lowest(scores, self.capacity - budget)
        self.decided(run, ~pruned, scores, budget=budget)
        return pruned

    def state_dict(self) -> State:
        return {"importance": self.importance.state_dict(), "pruned": self.pruned, "ranks": self.ranks}

    def load_state_dict(self, state: State) -> None:
        self.importance.load_state_dict(state["importance"])
        self.pruned, self.ranks = state["pruned"], dict(state["ranks"])


def cubic_budget(step: int, first: int, last: int, t_init: int, t_final: int, total: int) -> int:
    """b(t): `first` components up to t_init, `last` from total - t_final on, a falling cube in between."""
    if step <= t_init:
        return first
    if step > total - t_final:
        return last
    left: float = 1 - (step - t_init) / (total - t_final - t_init)
    return int(last + (first - last) * left**3)
