"""Weight refactorization: factors balanced anew every so many steps, and the optimizer's memory of them dropped."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.ops.spectrum import decompose_product, numerical_rank
from lrft.registry.axes import RESTARTS
from lrft.registry.config import Field, Literal, StagesConfig, model_validator
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    times: int


@RESTARTS.register
class Refactor(TimedMethod):
    """Weight refactorization and momentum reset: the product of two factors stays, its factors become balanced.

        every `every` steps:  B A = U S V^T,  B <- U S^1/2,  A <- S^1/2 V^T
        then:                 the optimizer's moments and step counts <- 0
                              lr_j = (j + 1) / (w + 1) lr in the j-th step after it, j = 0 ... w - 1

    with U S V^T the singular triplets of the product, found by the QR decompositions of B and A^T and an SVD of r x r;
    lr the rate of the recipe's schedule, w = `warmup`. The adapter's scale stays outside of the product. Afterwards
    B^T B = A A^T = S. `reset: all` forgets the state of everything that trains, `reset: factors` that of A and B.

    Shapes: A (r, in), B (out, r), with r at most in and out. Changes nothing at step 0, and the function never.
    Trains: what the adapter trains; the rank of the change stays r.
    State: the number of refactorizations.
    Source: Glentis et al., "Scalable Parameter and Memory Efficient Pretraining for LLM: Recent Algorithmic Advances
    and Benchmarking", 2025, arXiv 2505.22922: the abstract and the authors' code, which has both at one step; the
    paper's intervals were not to be had.
    Departures: the code forms B A and decomposes it whole, which has the same triplets. Its rate falls to 0.001 of the
    schedule's and rises from there. A product of a rank below r, such as that of a B which is still 0, is left as it
    is and counted as such in the metrics: factors balanced there would be 0 together, where no gradient leads away.
    `reset: factors` is an addition.
    Advice: theirs is `adapter: sltrain` from random weights; `adapter: factorized` and `lora` do as well.
    """

    aliases = {
        "weight_refactorization momentum_reset": "restart: refactor",
        "cosine_quick_recovery": "restart: {method: refactor, warmup: 10}",
    }
    requires = {"adapters", "factor_product"}

    config: Config

    class Config(StagesConfig):
        every: int = Field(1000, gt=0, description="optimizer steps between two refactorizations")
        warmup: int | None = Field(
            None,
            ge=0,
            description="steps in which the learning rate rises again; by default 10, or every - 1 if less",
        )
        reset: Literal["all", "factors"] = Field(
            "all", description="whose moments and step counts are dropped: of all that trains, or of A and B"
        )

        @model_validator(mode="after")
        def _warmup_fits(self) -> Refactor.Config:
            if self.warmup is not None and self.warmup >= self.every:
                raise ValueError(
                    f"{self.warmup} steps of warm-up do not fit into {self.every}; use at most {self.every - 1}"
                )
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.warmup = min(10, config.every - 1) if config.warmup is None else config.warmup
        self.times = 0

    def start(self, run: Run) -> None:
        for name, A, B in _pairs(run):
            if len(A) > (most := min(A.shape[1], len(B))):
                message = f"rank {len(A)} at {name} is more than its weight can have; use at most {most}"
                raise RecipeError(message, "adapter.rank")

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step % self.config.every or run.step >= run.total_steps:
            return
        left = 0
        for _, A, B in _pairs(run):
            found = balanced_pair(A, B)
            if found is None:
                left += 1
                continue
            A.copy_(found[0])
            B.copy_(found[1])
        factors = [factor for _, A, B in _pairs(run) for factor in (A, B)]
        run.reset_optimizer(None if self.config.reset == "all" else factors)
        run.restart_schedule(self.warmup)
        self.times += 1
        run.record(restarts=self.times, **({"left_unbalanced": left} if left else {}))

    def state_dict(self) -> State:
        return {"times": self.times}

    def load_state_dict(self, state: State) -> None:
        self.times = state["times"]


def _pairs(run: Run) -> list[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """Site name, A and B wherever a site has them; a site of a magnitude alone has none."""
    found = []
    for name, site in run.adapted():
        held = dict(site.adapter.named_parameters())
        if "A" in held and "B" in held:
            found.append((name, held["A"], held["B"]))
    return found


def balanced_pair(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor] | None:
    """S^1/2 V^T and U S^1/2 of the product of A (r, in) and B (out, r), in float64; None where its rank is below r."""
    found = decompose_product(A, B)
    if numerical_rank(found.S, (len(B), A.shape[1])) < len(A):
        return None
    root = found.S.sqrt()
    return root[:, None] * found.V.mT, found.U * root
