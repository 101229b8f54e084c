"""LT-SFT: the entries that another run moved furthest, or as many at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Placed, cut
from lrft.core.frozen import Quantizer
from lrft.core.params import Site
from lrft.core.stages import Evidence, Init, Plan
from lrft.methods.inits._shares import asked, check_wanted, dealt, in_proportion, sizes
from lrft.methods.inits._tuned import Tuned
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import ADDED, Field, MethodConfig, model_validator
from lrft.registry.errors import RecipeError


@INITS.register
class LTSFTPlaces(Init):
    """Lottery-ticket choice: entries that full fine-tuning moved furthest, over all weights together.

        places = the K largest entries of |W1 - W| in all weights
        with `original` W0:   places = those where W is not W0, and of the others the largest of |W1 - W|, K in all

    with W the pretrained weight and W1 that of the model in the folder `tuned`, such as `lrft merge` writes it of a run
    with `trainable: full`. K is `entries` or the adapter's `share` of all weights, cut to a whole number as in the
    code; of equal differences the first are taken, so K is exact. A weight without a chosen entry is frozen whole.
    Without `tuned` the places are drawn at random, in proportion to the sizes of the weights: the paper's variant that
    skips phase 1.

    In n iterations the entries join in n parts. The i-th has the merged model of the one before as `model.name`, a full
    run on it as `tuned`, the pretrained model as `original`, and i K / n entries. What was learnt is kept and goes on
    training; merged, the last one is the whole.

    Shapes: W, W1 (out, in), subtracted in float32. W' = W at step 0: everything that phase 1 learnt is rewound.
    Trains: what the adapter trains, K numbers in all. The base gives up nothing. A checkpoint holds the places, so a
    resumed run does not read the folder.
    Source: as of `adapter: lt_sft`.
    Departures: at the threshold the code takes every equal difference, so its K is a lower bound. Iterations are runs
    of their own, and an entry that came out of one as it went in is not told from one that never trained.
    Advice: phase 1 with `export: {dtype: float32}`, or with the weights' own dtype and `export.rounding: nearest`: the
    noise of stochastic rounding would be taken for differences. With `original` the model that is trained on too.
    """

    provides = {"kept_base"}
    requires = {"placed"}

    config: Config

    class Config(MethodConfig):
        tuned: str | None = Field(
            None,
            min_length=1,
            description="folder of a fully tuned model of the same base; null: the places are drawn at random",
        )
        entries: int | None = Field(
            None, gt=0, description="entries of all weights together, instead of a share"
        )
        original: Annotated[str | None, ADDED] = Field(
            None,
            min_length=1,
            description="folder of the model before the iterations that made model.name; what they moved trains on",
        )

        @model_validator(mode="after")
        def _check_original(self) -> LTSFTPlaces.Config:
            if self.original is not None and self.tuned is None:
                raise ValueError(
                    "original is of iterations by tuned models; write tuned, or leave original out"
                )
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reads_weights = config.tuned is not None

    def wanted(self, plan: Plan) -> int:
        """Entries of all weights together."""
        totals = sizes(plan)
        wanted = self.config.entries or asked(plan, "entries", totals, cut)
        return check_wanted(wanted, sum(totals.values()), "init.entries")

    def foresee(self, plan: Plan) -> Plan:
        """In proportion to the sizes of the weights; a folder that will not do is refused now."""
        if self.config.tuned is not None:
            self.read(adapted_sites(plan))
        return in_proportion(plan, "entries", sizes(plan), self.wanted(plan))

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """Deal the entries out by how far they were moved."""
        if self.config.tuned is None:
            return self.foresee(plan)
        assert evidence is not None
        sites, weight, wanted = adapted_sites(plan), evidence.weight, self.wanted(plan)
        score = self.read(sites)
        moved = held = 0
        for name in sites:
            found = score(name, weight(name))
            moved, held = moved + int(found.count_nonzero()), held + int(found.isinf().sum())
        if held > wanted:
            message = (
                f"{wanted:,} entries are fewer than the {held:,} that were moved since {self.config.original}"
            )
            raise RecipeError(f"{message}; write more", "init.entries")
        if moved < wanted:
            message = (
                f"{wanted:,} entries are more than the {moved:,} that {self.config.tuned} moved; use fewer"
            )
            raise RecipeError(message, "init.entries")
        return dealt(plan, "entries", lambda name: score(name, weight(name)), wanted)

    def read(self, sites: Mapping[str, Site]) -> Callable[[str, Tensor], Tensor]:
        """(name of a site, its weight) -> how far entries were moved, inf where earlier iterations moved them.

        Raises:
            RecipeError: a folder will not do.
        """
        assert self.config.tuned is not None
        tuned = Tuned(self.config.tuned, sites)
        if self.config.original is None:
            return tuned.distance
        original = Tuned(self.config.original, sites, "init.original")

        def score(name: str, weight: Tensor) -> Tensor:
            return tuned.distance(name, weight).masked_fill(original.distance(name, weight) > 0, torch.inf)

        return score

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Placed)
        count = len(adapter.places)
        if self.config.tuned is None:
            adapter.place(torch.randperm(weight.numel())[:count].sort().values)
            return
        site = adapter.site
        adapter.place(largest(self.read({site.name: site})(site.name, weight), count))


def adapted_sites(plan: Plan) -> dict[str, Site]:
    """Sites that get an adapter."""
    return {name: entry.site for name, entry in plan.items() if entry.config is not None}
