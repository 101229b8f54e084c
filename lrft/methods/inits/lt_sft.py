"""LT-SFT: the entries that another run moved furthest, or as many at random."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Placed
from lrft.core.frozen import Quantizer
from lrft.core.params import Site
from lrft.core.stages import Evidence, Init, Plan
from lrft.methods.inits._shares import asked, check_wanted, dealt, in_proportion, sizes
from lrft.methods.inits._tuned import Tuned
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig
from lrft.registry.errors import RecipeError


@INITS.register
class LTSFTPlaces(Init):
    """Lottery-ticket choice: entries that full fine-tuning moved furthest, over all weights together.

        places = the K largest entries of |W1 - W| in all weights

    with W the pretrained weight and W1 that of the model in the folder `tuned`, such as `lrft merge` writes it of a run
    with `trainable: full`. K is `entries` or what the adapter's `share` makes of all weights; of equal differences the
    first are taken, so K is exact. A weight without a chosen entry is frozen whole. Without `tuned` the places are
    drawn at random, in proportion to the sizes of the weights: the paper's variant that skips phase 1.

    Shapes: W, W1 (out, in), subtracted in float32. W' = W at step 0: everything that phase 1 learnt is rewound.
    Trains: what the adapter trains, K numbers in all. The base gives up nothing. A checkpoint holds the places, so a
    resumed run does not read the folder.
    Source: as of `adapter: lt_sft`.
    Departures: at the threshold the code takes every equal difference, so its K is a lower bound.
    Advice: phase 1 with `export: {dtype: float32}`, or with the weights' own dtype and `export.rounding: nearest`: the
    noise of stochastic rounding would be taken for differences.
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

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reads_weights = config.tuned is not None

    def wanted(self, plan: Plan) -> int:
        """Entries of all weights together."""
        totals = sizes(plan)
        wanted = self.config.entries or asked(plan, "entries", totals)
        return check_wanted(wanted, sum(totals.values()), "init.entries")

    def foresee(self, plan: Plan) -> Plan:
        """In proportion to the sizes of the weights; a folder that will not do is refused now."""
        if self.config.tuned is not None:
            Tuned(self.config.tuned, adapted_sites(plan))
        return in_proportion(plan, "entries", sizes(plan), self.wanted(plan))

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """Deal the entries out by how far they were moved."""
        if self.config.tuned is None:
            return self.foresee(plan)
        assert evidence is not None
        sites, weight, wanted = adapted_sites(plan), evidence.weight, self.wanted(plan)
        tuned = Tuned(self.config.tuned, sites)
        moved = sum(int(tuned.distance(name, weight(name)).count_nonzero()) for name in sites)
        if moved < wanted:
            message = (
                f"{wanted:,} entries are more than the {moved:,} that {self.config.tuned} moved; use fewer"
            )
            raise RecipeError(message, "init.entries")
        return dealt(plan, "entries", lambda name: tuned.distance(name, weight(name)), wanted)

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Placed)
        count = len(adapter.places)
        if self.config.tuned is None:
            adapter.place(torch.randperm(weight.numel())[:count].sort().values)
            return
        site = adapter.site
        tuned = Tuned(self.config.tuned, {site.name: site})
        adapter.place(largest(tuned.distance(site.name, weight), count))


def adapted_sites(plan: Plan) -> dict[str, Site]:
    """Sites that get an adapter."""
    return {name: entry.site for name, entry in plan.items() if entry.config is not None}
