"""CoDyRA: gates of rank components shrunk to zero by a proximal step."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.run import Run
from lrft.methods.allocate._dynamic import Dynamic, factors
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, Literal, MethodConfig, Sequence
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    ranks: dict[str, int]


@ALLOCATORS.register
class CoDyRA(Dynamic):
    """Dynamic rank selection: gates are shrunk towards zero after every step of the second half of the run.

        dW = B diag(g) A
        after step i > dense T:  g <- shrink(g, k_i)
        k_i = kappa l_i / (levels - 1)
        l_i = min(levels - 1, the count of multiples of L from dense T to i),  L = floor((1 - dense) T / levels)

    with i of the T steps, counted from 0; kappa = `kappa`, dense = `dense`, levels = `levels`. `shrink: released` has
    g - k where g > k, then g + k where g < -k, then 0 where |g| < k: in all, 0 where |g| < 2 k. `shrink: soft` has
    sign(g) max(|g| - k, 0), the textbook proximal step of k |g|. k is not multiplied by the learning rate, and the loss
    is untouched. There is no budget: the ranks are the gates that are left, and the export drops the others.

    Shapes: A (r, in), B (out, r), g (r), the E of `adapter: gated_lora`. The function at step 0 is untouched.
    Trains: what the adapter trains, all of it in every step.
    State: none but the step.
    Source: Lu et al., "Adaptive Rank, Reduced Forgetting: Knowledge Retention in Continual Learning Vision-Language
    Models with Dynamic Rank-Selective LoRA", 2024, arXiv 2412.01004, and the authors' code: adapter gated_lora of rank
    16, AdamW with betas (0.9, 0.9999), lr 5e-4, no weight decay, 500 steps.
    Departures: one task; the archive over several, and the masking of old classes, are not part of a run.
    """

    aliases = {
        "codyra": "adapter: gated_lora\nallocate: codyra",
    }
    requires = {"elastic", "one_stage"}

    config: Config

    class Config(MethodConfig):
        kappa: float = Field(0.005, gt=0, description="threshold that is reached at the end")
        dense: float = Field(0.5, ge=0, lt=1, description="share of the run before anything shrinks")
        levels: int = Field(50, ge=2, description="values the threshold takes, 0 and kappa included")
        shrink: Literal["released", "soft"] = Field(
            "released", description="the authors' code, which zeroes |g| < 2 kappa, or soft thresholding"
        )

        def interval(self, total: int) -> int:
            """Steps that each threshold holds for."""
            return int((total - self.dense * total) // self.levels)

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse more thresholds than steps."""
            if self.interval(total_steps) < 1:
                room = int(total_steps * (1 - self.dense))
                remedy = f"write {room} or fewer, or train for longer" if room > 1 else "train for longer"
                message = f"{self.levels} thresholds do not fit into the {room} steps after the dense phase; {remedy}"
                raise RecipeError(message, "allocate.levels")

    def level(self, index: int, total: int) -> int:
        """Which of the thresholds holds at the step of this index, counted from 0."""
        first, interval = math.ceil(self.config.dense * total), self.config.interval(total)
        passed = index // interval - (first - 1) // interval if index >= first else 0
        return min(passed, self.config.levels - 1)

    def threshold(self, level: int) -> float:
        """The threshold k of a level."""
        return float(self.config.kappa * level / (self.config.levels - 1))

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        index, total = run.step - 1, run.total_steps
        level = self.level(index, total)
        if index > self.config.dense * total:
            rule = released if self.config.shrink == "released" else soft
            for adapter in self.adapters.values():
                gates = factors(adapter)[1]
                gates.copy_(rule(gates, self.threshold(level)))
        if level != self.level(index - 1, total) or run.step == total:
            gates = torch.cat([factors(adapter)[1] for adapter in self.adapters.values()])
            self.decided(run, gates != 0, gates.abs(), kappa=self.threshold(level))

    def state_dict(self) -> State:
        return {"ranks": self.ranks}

    def load_state_dict(self, state: State) -> None:
        self.ranks = dict(state["ranks"])


def soft(gates: Tensor, k: float) -> Tensor:
    """sign(g) max(|g| - k, 0)."""
    return gates.sign() * (gates.abs() - k).clamp_min(0)


def released(gates: Tensor, k: float) -> Tensor:
    """The three assignments of the authors' code, one after the other."""
    gates = torch.where(gates > k, gates - k, gates)
    gates = torch.where(gates < -k, gates + k, gates)
    return torch.where(gates.abs() < k, torch.zeros_like(gates), gates)
