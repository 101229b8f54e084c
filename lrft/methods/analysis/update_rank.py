"""The rank of what training added to each weight."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES


@ANALYSES.register
class UpdateRank(Analysis):
    """Numerical and stable rank of the merged update dW (out, in) at the end of the run, site by site.

    rank = how many singular values of dW exceed max(out, in) eps sigma_1, eps of float32
    stable = ||dW||_F^2 / sigma_1^2
    Folds of restarts count: dW is all that was added since the pretrained weight.
    Found: `rank` and `stable` for each site, `rank_mean`, `stable_mean`, `rank_most`. A site that did not move has
    rank 0 and stable rank 0. Costs one SVD a site.
    Source: the count is that of torch.linalg.matrix_rank; stable rank: Rudelson and Vershynin, 2007.
    """

    def start(self, run: Run) -> None:
        changed(run)  # refused now and not at the end

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        ranks: dict[str, float] = {}
        stable: dict[str, float] = {}
        for change in changed(run).changes():
            ranks[change.site], stable[change.site] = _ranks(change.change)
        self.note(rank=ranks, rank_mean=fmean(ranks.values()), rank_most=max(ranks.values()))
        self.note(stable=stable, stable_mean=fmean(stable.values()))
        super().finish(run)


def _ranks(change: Tensor) -> tuple[float, float]:
    values = torch.linalg.svdvals(change)
    largest = float(values[0])
    if largest == 0:
        return 0.0, 0.0
    floor = max(change.shape) * torch.finfo(torch.float32).eps * largest
    return float((values > floor).sum()), float(values.square().sum()) / largest**2
