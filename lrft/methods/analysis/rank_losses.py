"""The held-out loss of a finished adapter at each rank up to its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.adapter import Adapter
from lrft.core.analysis import Analysis
from lrft.core.run import Run
from lrft.methods.analysis._factors import with_factors
from lrft.registry.axes import ANALYSES
from lrft.registry.errors import RecipeError


@ANALYSES.register
class RankLosses(Analysis):
    """Loss on the held-out rows with the k leading rank components of every adapter, for every k up to its rank.

        loss_k = mean cross-entropy with W' = W + s_k B[:, :k] A[:k],  k = 1 ... rank

    Adapters that are nested (`adapter: dylora`) are truncated as for use, with the scale s_k that belongs to rank k; of
    others the columns B[:, k:] count as 0 and s_k stays the scale s of the trained rank, so that the adapter is what it
    learnt, cut off.

    Layers whose adapter has no A and B (`magnitude_only` of `dora`) stay whole.

    Shapes: A (r, in), B (out, r) as trained.
    Found: `loss` for each rank, nats per supervised token. Costs one pass over the held-out rows a rank.
    Source: Valipour et al., "DyLoRA", EACL 2023, arXiv 2210.07558, section 4, where LoRA is cut off in the same way.
    """

    requires = {"low_rank"}

    def start(self, run: Run) -> None:
        with_factors(run, self.name)
        if run.score is None:
            raise RecipeError(
                "rank_losses scores held-out rows; give data.eval and train.eval_every", "analyse"
            )

    def finish(self, run: Run) -> None:
        assert run.score is not None
        sites = with_factors(run, self.name)
        largest = max(module.adapter.get_parameter("A").shape[0] for module in sites)
        for rank in range(1, largest + 1):
            with _cut(sites, rank):
                self.note(loss={str(rank): _mean(run.score())})
        super().finish(run)


def _mean(rows: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in rows) / sum(tokens for _, tokens in rows)


@contextmanager
@torch.no_grad()
def _cut(sites: list[Adapted], rank: int) -> Iterator[None]:
    """Every adapter at `rank`, for a while."""
    kept: list[tuple[Adapted, Adapter]] = []
    columns: list[tuple[Tensor, Tensor]] = []
    for module in sites:
        A, B = (module.adapter.get_parameter(name) for name in "AB")
        if rank >= len(A):
            continue
        if "nested" in module.adapter.provides:
            kept.append((module, module.adapter))
            module.adapter = copy.deepcopy(module.adapter)
            module.adapter.truncate(rank)
        else:  # in place: what the adapter shares with others is not copied
            columns.append((B[:, rank:], B[:, rank:].clone()))
            B[:, rank:] = 0
    try:
        yield
    finally:
        for module, adapter in kept:
            module.adapter = adapter
        for place, before in columns:
            place.copy_(before)
