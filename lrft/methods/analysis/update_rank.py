"""The rank of what training added to each weight."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.ops.spectrum import numerical_rank, stable_rank
from lrft.registry.axes import ANALYSES


@ANALYSES.register
class UpdateRank(Analysis):
    """Numerical and stable rank of the merged update of every weight at the end of the run.

        rank   = how many singular values of dW exceed max(out, in) eps sigma_1
        stable = ||dW||_F^2 / sigma_1^2

    with dW all that was added since the pretrained weight, folds of restarts included; sigma_1 its largest singular
    value, eps that of float32. A site that did not move has rank 0 and stable rank 0.

    Shapes: dW (out, in).
    Found: `rank` and `stable` for each site, `rank_mean`, `stable_mean`, `rank_most`. Costs one SVD a site.
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
    out, into = change.shape
    return float(numerical_rank(values, (out, into))), stable_rank(values)
