"""The held-out loss of a finished adapter at each rank up to its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrft.core.adapted import Adapted
from lrft.core.adapter import Adapter
from lrft.core.analysis import Analysis
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES
from lrft.registry.errors import RecipeError


@ANALYSES.register
class RankLosses(Analysis):
    """Loss on the held-out rows with the k leading rank components of every adapter, for every k up to its rank.

        loss_k = mean cross-entropy with W' = W + s_k B[:, :k] A[:k],  k = 1 ... rank

    Adapters that are nested (`adapter: dylora`) are truncated as for use, with the scale s_k that belongs to rank k; of
    others the columns B[:, k:] count as 0 and s_k stays the scale s of the trained rank, so that the adapter is what it
    learnt, cut off.

    Shapes: A (r, in), B (out, r) as trained.
    Found: `loss` for each rank, nats per supervised token. Costs one pass over the held-out rows a rank.
    Source: Valipour et al., "DyLoRA", EACL 2023, arXiv 2210.07558, section 4, where LoRA is cut off in the same way.
    """

    requires = {"low_rank"}

    def start(self, run: Run) -> None:
        if run.score is None:
            raise RecipeError(
                "rank_losses scores held-out rows; give data.eval and train.eval_every", "analyse"
            )

    def finish(self, run: Run) -> None:
        assert run.score is not None
        sites = [module for _, module in run.adapted()]
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
    kept: list[Adapter] = []
    for module in sites:
        adapter = module.adapter
        kept.append(adapter)
        if rank < adapter.get_parameter("A").shape[0]:
            module.adapter = copy.deepcopy(adapter)
            if "nested" in adapter.provides:
                module.adapter.truncate(rank)
            else:
                module.adapter.get_parameter("B")[:, rank:] = 0
    try:
        yield
    finally:
        for module, adapter in zip(sites, kept, strict=True):
            module.adapter = adapter
