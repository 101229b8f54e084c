"""SMT: the blocks with the largest gradients."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Placed, budget
from lrft.core.frozen import Quantizer
from lrft.core.stages import Evidence, Init, Plan, SitePlan
from lrft.methods.inits._shares import asked, check_wanted, dealt, in_proportion, sizes
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import (
    ADDED,
    Field,
    Iterator,
    Literal,
    MethodConfig,
    Problem,
    RecipeView,
    model_validator,
)
from lrft.registry.errors import RecipeError

CLIP = 1.0  # norm of a step's gradient in a warm-up, of all weights together
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "abs_mean": lambda block: block.abs().mean((1, 3)),
    "mean_abs": lambda block: block.mean((1, 3)).abs(),
    "l1": lambda block: block.abs().sum((1, 3)),
    "l2": lambda block: block.square().sum((1, 3)).sqrt(),
}


@INITS.register
class SMTBlocks(Init):
    """Sparse matrix tuning's choice: blocks of the largest gradient, over all matrices together.

        G = dL/dW averaged over micro-batches
        places = the N blocks of the largest s(G_n)

    with G averaged over `batches` micro-batches, of the pretrained weights or, with `warmup_rate`, of all weights as
    they are trained in full meanwhile, a step of AdamW a micro-batch at that rate, clipped at 1 and without decay; G_n
    its blocks of side b; s by `score`: `abs_mean` the mean of |g|, `mean_abs` the absolute value of the mean, `l1` the
    sum of |g|, `l2` the norm. `scope: global` compares all matrices, N is `blocks` or what the adapter's `share` makes
    of them all, and a matrix without a block is frozen whole; `scope: matrix` takes the adapter's N of every matrix.
    `shares` makes groups of matrices with budgets of their own: {'self_attn.*': 0.0084, 'mlp.*': 0.0084} compares
    attention with attention and feed-forward with feed-forward. Of equal scores the first are taken.

    Shapes: G (out, in); W' = W at step 0.
    Trains: what the adapter trains. The base gives up nothing. A warm-up holds what full fine-tuning in float32 does.
    Source: as of `adapter: smt`. The authors' code has `mean_abs` by default and `abs_mean` in its commands, and what
    the paper prints, as others sum it up, is `abs_mean`: settled here as the default. Its `no_restriction` is
    `scope: global`, its `norm_dist` `scope: matrix`.
    Departures: the code trains all weights for 100 steps, at its rate of 9.65e-6, sums the gradients on the way, and
    keeps what was learnt. Here the weights are put back after a warm-up, so that a base of any storage can be the one
    of the run; to keep it, make the warm-up a run of its own with `trainable: full` and name the merged model as
    `model.name`. By default they do not move. The choice by activations, far worse in the paper, is left out.
    """

    provides = {"kept_base"}
    requires = {"placed", "backward"}
    needs = ("grad",)

    config: Config

    class Config(MethodConfig):
        score: Literal["abs_mean", "mean_abs", "l1", "l2"] = "abs_mean"
        scope: Literal["global", "matrix"] = Field("global", description="what blocks are compared with")
        blocks: int | None = Field(
            None, gt=0, description="with `scope: global`, blocks of all matrices together instead of a share"
        )
        batches: int = Field(100, gt=0, description="training micro-batches the gradient is averaged over")
        shares: Annotated[dict[str, Annotated[float, Field(gt=0, le=1)]], ADDED] = Field(
            default_factory=dict,
            description="patterns of site names -> share of their blocks, dealt out among them alone; the first match "
            "counts, and what no pattern names has the adapter's share, dealt out among the rest",
        )
        warmup_rate: Annotated[float | None, ADDED] = Field(
            None,
            gt=0,
            description="rate at which all weights train in full while the gradient is measured, and are then put back",
        )

        @model_validator(mode="after")
        def _check_shares(self) -> SMTBlocks.Config:
            if self.shares and (self.scope == "matrix" or self.blocks is not None):
                what = "scope: matrix compares no matrices" if self.scope == "matrix" else "blocks is of all"
                raise ValueError(f"{what}, and shares are of groups of them; write one of the two")
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A loss that compares with the base, which a warm-up moves."""
            objective = recipe.declared("objective")
            if self.warmup_rate is not None and objective and "fixed_base" in objective.requires:
                message = f"moves the base, which {objective.name} compares with; write null"
                yield Problem("init.warmup_rate", message)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.warm_up = None if config.warmup_rate is None else self.steps

    def steps(self, weights: list[Tensor]) -> Callable[[], None]:
        """What takes a step of full training with the gradients that the weights have."""
        optimizer = torch.optim.AdamW(weights, lr=self.config.warmup_rate or 0.0, weight_decay=0.0)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()

        return step

    def foresee(self, plan: Plan) -> Plan:
        """As many blocks as there will be, in proportion to the sizes of the matrices."""
        return self.dealt(plan, lambda group, wanted: in_proportion(group, "blocks", totals(group), wanted))

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """Deal the blocks out by their scores."""
        return self.dealt(plan, lambda group, wanted: self.by_scores(group, wanted, evidence))

    def by_scores(self, group: Plan, wanted: int, evidence: Evidence | None) -> Plan:
        """A group of matrices with `wanted` blocks in all, where their scores are largest."""
        assert evidence is not None
        signals = evidence.signals
        return dealt(
            group, "blocks", lambda name: self.scores(signals[name]["grad"], side(group[name])), wanted
        )

    def dealt(self, plan: Plan, deal: Callable[[Plan, int], Plan]) -> Plan:
        """The plan with every group of matrices as `deal` has it, given how many blocks it is to have."""
        if self.config.scope == "matrix":
            return plan
        found, left = dict(plan), {name: entry for name, entry in plan.items() if entry.config is not None}
        for pattern, share in self.config.shares.items():
            group = {name: left.pop(name) for name in list(left) if matches(name, pattern)}
            if not group:
                raise RecipeError(f"{pattern} names no layer that no pattern before it names", "init.shares")
            found |= deal(group, budget(share, sum(totals(group).values())))
        return found | (deal(left, self.wanted(left)) if left else {})

    def wanted(self, plan: Plan) -> int:
        """Blocks of these matrices together, by no share of a group's."""
        found = totals(plan)
        wanted = self.config.blocks or asked(plan, "blocks", found)
        return check_wanted(wanted, sum(found.values()), "init.blocks")

    def scores(self, gradient: Tensor, side: int) -> Tensor:
        """The score of every block, row by row."""
        blocks = gradient.float().unflatten(1, (-1, side)).unflatten(0, (-1, side))
        return SCORES[self.config.score](blocks).flatten()

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Placed)
        site, config = adapter.site, cast("Any", adapter.config)
        scores = self.scores(signal["grad"], config.side(site.in_features, site.out_features))
        adapter.place(largest(scores, len(adapter.places)))


def matches(name: str, pattern: str) -> bool:
    """Whether a site's name ends in the pattern, from a dot on."""
    return fnmatch.fnmatchcase(f".{name}", f"*.{pattern}")


def side(entry: SitePlan) -> int:
    """Side of the blocks of a site."""
    config: Any = entry.config
    return int(config.side(entry.site.in_features, entry.site.out_features))


def totals(plan: Plan) -> dict[str, int]:
    """How many blocks every adapted weight has."""
    return {name: size // side(plan[name]) ** 2 for name, size in sizes(plan).items()}
