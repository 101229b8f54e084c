"""Intruder dimensions: leading directions of a trained weight that the pretrained one did not have."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES
from lrft.registry.config import Field, MethodConfig


@ANALYSES.register
class Intruders(Analysis):
    """Leading left singular vectors of W1 that are like none of W0, at the end of the run, site by site.

    W0 = U0 S0 V0^T (out, in) before, W1 = W0 + dW = U1 S1 V1^T after
    c_j = max over all i of |<u1_j, u0_i>| for the `top` largest singular values j; an intruder has c_j < `below`
    Where W0 has fewer columns than rows U0 does not span the outputs: all min(out, in) vectors of it count.
    Found: `count` for each site, `count_mean`, `count_total`, and `least`, the smallest c_j of each site. Costs two
    SVDs a site. W0 is the weight as it is stored, decoded where it is quantized.
    Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024, arXiv 2410.21228, and the
    authors' code (top 10, below 0.5). Close singular values rotate freely among themselves, so that a large matrix can
    show intruders that are none.
    """

    class Config(MethodConfig):
        top: int = Field(10, gt=0, description="how many leading directions are looked at")
        below: float = Field(0.5, gt=0, le=1, description="largest similarity of an intruder")

    def start(self, run: Run) -> None:
        changed(run)  # refused now and not at the end

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        count: dict[str, float] = {}
        least: dict[str, float] = {}
        for change in changed(run).changes():
            likeness = similarity(change.before, change.before + change.change, self.config.top)
            count[change.site] = float((likeness < self.config.below).sum())
            least[change.site] = float(likeness.min())
        self.note(count=count, count_total=sum(count.values()), count_mean=fmean(count.values()))
        self.note(least=least)
        super().finish(run)


def similarity(before: Tensor, after: Tensor, top: int) -> Tensor:
    """c_j (top,) of the leading left singular vectors of `after` (out, in) against all of `before`."""
    old = torch.linalg.svd(before, full_matrices=False).U
    new = torch.linalg.svd(after, full_matrices=False).U[:, :top]
    return (old.mT @ new).abs().amax(0)
