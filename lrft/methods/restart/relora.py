"""ReLoRA: a sum of low-rank updates, each trained after the last was merged."""

from __future__ import annotations

from typing import TypedDict

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.methods.restart._unload import check_renewable, fold_all, moments, reset_moments
from lrft.registry.axes import RESTARTS
from lrft.registry.config import Field, Literal, Sequence, StagesConfig, model_validator
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    merges: int


@RESTARTS.register
class ReLoRA(TimedMethod):
    """Merge the adapter and start it anew every so many steps, with most moments zeroed and a short warm-up.

        every `every` steps:  W <- W + s B A,  A ~ U(-1/sqrt(in), 1/sqrt(in)),  B <- 0
        every `cycle` steps:  a share q of the entries of the moments m and v <- 0
        then:                 lr_j = (j + 1) / (w + 1) lr in the j-th step after it, j = 0 ... w - 1

    with s the adapter's scale, A and B as the adapter starts (here LoRA), q = `prune_ratio`, lr the rate of the
    recipe's schedule, w = `warmup` (default 100, or `cycle` / 10 if less); `cycle` is `every` unless it is set.
    `reset: random` zeroes entries at random, `reset: magnitude` the smallest of each tensor; both leave step counts;
    `reset: all` forgets the whole state.

    Shapes: W (out, in), A (r, in), B (out, r). Changes nothing at step 0, and a merge leaves the function as it was.
    Trains: what the adapter trains, anew after every merge. What was merged is kept in float32 beside the stored weight
    and never rounded into it: after k merges the total change has a rank of up to k r and takes 4 k r (in + out) bytes,
    or 4 in out where that is less.
    State: the number of merges.
    Source: Lialin et al., "ReLoRA: High-Rank Training Through Low-Rank Updates", ICLR 2024, arXiv 2307.05695, and the
    authors' code, whose default is `reset: random` at 0.999; they report `reset: magnitude` at 0.9 to do as well.
    Departures: in their code the rate falls to exactly 0 and the merge follows the step that is lost to it; here that
    step is left out, and the rate rises to where the schedule is, there to where it will be when it is up. Their warm
    start in full rank is the pretrained model; weights outside the adapters train where `trainable` names them; the
    schedule is the recipe's, theirs a cosine down to 0.1. A trainable scale, which with B = 0 would leave no gradient
    at all, does not exist. `reset: all` is an addition.
    """

    aliases = {
        "relora_steps jagged_restart_steps": "restart: {method: relora, every: 1000}",
        "merge_and_reinit": "restart: relora",
    }
    requires = {"adapters", "mergeable", "beside_base", "foldable"}

    config: Config

    class Config(StagesConfig):
        every: int = Field(1000, gt=1, description="optimizer steps between two merges")
        cycle: int | None = Field(
            None, gt=0, description="steps between two warm-ups and resets of the moments; by default `every`"
        )
        warmup: int | None = Field(
            None,
            ge=0,
            description="steps in which the learning rate rises again; by default 100, or cycle / 10 if less",
        )
        reset: Literal["random", "magnitude", "all"] = Field(
            "random",
            description="which moments are zeroed: some at random, the smallest, or all with their step counts",
        )
        prune_ratio: float = Field(0.999, ge=0, lt=1, description="share of each moment that is zeroed")

        @model_validator(mode="after")
        def _warmup_fits(self) -> ReLoRA.Config:
            cycle = self.every if self.cycle is None else self.cycle
            if self.warmup is not None and self.warmup >= cycle:
                raise ValueError(
                    f"{self.warmup} steps of warm-up do not fit into a cycle of {cycle}; use less than that"
                )
            return self

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run without a merge, and one without a reset of the moments."""
            super().check_length(total_steps)
            if self.cycle is not None and self.cycle >= total_steps:
                message = f"{self.cycle} steps are no less than the whole run's {total_steps}, so that no moment would "
                raise RecipeError(f"{message}be reset; use at most {total_steps - 1}", "restart.cycle")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cycle = config.every if config.cycle is None else config.cycle
        self.warmup = min(100, self.cycle // 10) if config.warmup is None else config.warmup
        self.merges = 0

    def start(self, run: Run) -> None:
        check_renewable(run)

    def after_step(self, run: Run) -> None:
        if run.step == 1 and self.config.reset != "all":
            list(moments(run))  # refuses now what it would refuse a thousand steps later
        if run.step >= run.total_steps:
            return
        if run.step % self.config.every == 0:
            fold_all(run)
            self.merges += 1
            run.record(restarts=self.merges)
        if run.step % self.cycle == 0:
            reset_moments(run, self.config.reset, self.config.prune_ratio)
            run.restart_schedule(self.warmup)

    def state_dict(self) -> State:
        return {"merges": self.merges}

    def load_state_dict(self, state: State) -> None:
        self.merges = state["merges"]
