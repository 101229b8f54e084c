"""LIFT's refresh: the entries that train are chosen anew by the weight as it has become."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.callback import TimedMethod
from lrft.core.entries import Renewable
from lrft.core.run import Run
from lrft.core.stages import Planner
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, MethodConfig, Sequence, check_every


@ALLOCATORS.register
class LIFTRefresh(Planner, TimedMethod):
    """Principal weights anew: every K steps entries train where the rank-reduced weight then is largest.

        before steps K - 1, 2 K - 1, ...:  P' = the k largest entries of |W'_f|
        values and moments at P':          those they have where P' was in P before; others go on from what they
                                           had learnt, with moments 0

    with K = `every`, P the adapter's places, W' = W + S the weight as it then is, f the adapter's `filter_rank`. The
    function is untouched, and the step count of the moments goes on. Without it the entries of the start train to the
    end.

    Shapes: those of the adapter. Changes nothing at step 0.
    Trains: what the adapter trains, k numbers per site at all times.
    State: none beside the adapter's places and its entries at rest. Working room: W' and its SVD, one site at a time.
    Source: as of `adapter: lift_entries`.
    Departures: as of `adapter: lift_entries`. Steps are counted as in the code, whose first renewal comes after K - 1
    of them.
    """

    requires = {"renewable", "entry_moments"}

    config: Config

    class Config(MethodConfig):
        every: int = Field(400, gt=0, description="optimizer steps between two choices")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first choice."""
            if self.every > total_steps:
                check_every(self.every, total_steps, "allocate.every", other=", or uniform")

    def before_step(self, run: Run) -> None:
        if run.step == 0 or (run.step + 1) % self.config.every:
            return
        moved = total = 0
        for _, site in run.adapted():
            moved, total = moved + renew(run, site), total + len(site.adapter.get_buffer("places"))
        run.record(entries_moved=moved / total)


@torch.no_grad()
def renew(run: Run, site: Adapted) -> int:
    """Choose the entries of a site anew and let the moments follow; how many entries are new."""
    adapter = site.adapter
    assert isinstance(adapter, Renewable), f"{adapter.name} is not renewable"
    before, after = adapter.places.long(), adapter.wanted(site.merged_weight())
    adapter.renew(after)
    size = adapter.site.in_features * adapter.site.out_features
    for moment in moments(run, adapter.values):
        moment.copy_(moment.new_zeros(size).index_copy_(0, before, moment)[after])
    return len(after) - int(torch.isin(after, before, assume_unique=True).sum())


def moments(run: Run, values: Tensor) -> Iterator[Tensor]:
    """What the optimizer keeps of every entry."""
    for value in run.optimizer.state.get(values, {}).values():
        if torch.is_tensor(value) and value.shape == values.shape:
            yield value
