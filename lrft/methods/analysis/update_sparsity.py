"""How many entries of each weight training left as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES
from lrft.registry.config import Field, MethodConfig


@ANALYSES.register
class UpdateSparsity(Analysis):
    """Share of the entries of every weight that training did not change, as trained and as bfloat16 stores them.

        sparsity        = 1 - |{ij: |dW_ij| > tolerance}| / n
        sparsity_bf16   = the same of bf16(W + dW) - bf16(W)

    with W the weight before training, dW all that was added since, n the number of entries. A change of less than half
    the spacing of bfloat16 (6e-5 at 0.02) is lost there, so the second number measures the storage as well as the
    training: a low-rank update is dense, and its merged form in bfloat16 can be sparse.

    Shapes: W, dW (out, in).
    Found: both for each site, and over all entries of all sites, `sparsity_all` and `sparsity_bf16_all`. Costs one pass
    over each weight.
    Source: Mukherjee et al., "Reinforcement Learning Finetunes Small Subnetworks in Large Language Models", 2025, arXiv
    2505.11711, whose code compares bfloat16 weights within 1e-5.
    Departures: sites alone are looked at, no embeddings and norms; settled here: the tolerance is absolute, without the
    relative one that torch.isclose adds.
    """

    aliases = {
        "delta_sparsity changed_entries": "analyse: [update_sparsity]",
    }

    config: Config

    class Config(MethodConfig):
        tolerance: float = Field(1e-5, ge=0, description="largest change that counts as none")

    def start(self, run: Run) -> None:
        changed(run)  # refused now and not at the end

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        tolerance, entries = self.config.tolerance, 0
        same, stored = dict[str, float](), dict[str, float]()
        totals = [0, 0]
        for change in changed(run).changes():
            unchanged = count_unchanged(change.before, change.change, tolerance)
            n = change.before.numel()
            same[change.site], stored[change.site] = (count / n for count in unchanged)
            entries += n
            totals = [total + count for total, count in zip(totals, unchanged, strict=True)]
        self.note(sparsity=same, sparsity_all=totals[0] / entries)
        self.note(sparsity_bf16=stored, sparsity_bf16_all=totals[1] / entries)
        super().finish(run)


def count_unchanged(before: Tensor, change: Tensor, tolerance: float) -> tuple[int, int]:
    """Entries within the tolerance: of the change itself, and of the difference of the weights in bfloat16."""
    stored = (before + change).bfloat16().float() - before.bfloat16().float()
    return int((change.abs() <= tolerance).sum()), int((stored.abs() <= tolerance).sum())
