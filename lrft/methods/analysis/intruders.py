"""Intruder dimensions: leading directions of a trained weight that the pretrained one did not have."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.ops.spectrum import likeness
from lrft.registry.axes import ANALYSES
from lrft.registry.config import Field, MethodConfig


@ANALYSES.register
class Intruders(Analysis):
    """Intruder dimensions: leading left singular vectors of a trained weight, unlike any of the pretrained one.

        W0 = U0 S0 V0^T,  W1 = W0 + dW = U1 S1 V1^T
        c_j = max over all i of |<u1_j, u0_i>|,  j = 1 ... top
        an intruder:  c_j < below

    with W0 the weight before training, as it is stored (decoded where it is quantized), W1 that at the end of the run;
    u1_j the vectors of the `top` largest singular values, below = `below`. Where W0 has fewer columns than rows U0 does
    not span the outputs: all min(out, in) vectors of it count.

    Shapes: W0, W1 (out, in), U0, U1 (out, min(out, in)).
    Found: `count` for each site, `count_mean`, `count_total`, and `least`, the smallest c_j of each site. Costs two
    SVDs a site.
    Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024, arXiv 2410.21228, and the
    authors' code (top 10, below 0.5).
    Advice: close singular values rotate freely among themselves, so that a large matrix can show intruders that are
    none.
    """

    config: Config

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
    old: Tensor = torch.linalg.svd(before, full_matrices=False).U
    new: Tensor = torch.linalg.svd(after, full_matrices=False).U[:, :top]
    return likeness(old, new)
