"""What storage and start lose of the weights: the distance of the model at step 0 from the model's files."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from lrft.core.analysis import Analysis
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES


@ANALYSES.register
class StartError(Analysis):
    """Error of the stored base and the adapter together at step 0, against the weight in the model's files.

        E = W - (Q + dW_0)
        frobenius = ||E||_F,  nuclear = ||E||_*, the sum of singular values

    with W the weight in the model's files, Q what the storage made of the base, dW_0 the adapter's start. For plain
    QLoRA E is the rounding error of the weight; joint decompositions make it smaller.

    Shapes: W, Q, dW_0, E (out, in), in float32.
    Found: `frobenius` and `nuclear` for each site; their means over the sites, `frobenius_mean` and `nuclear_mean`.
    Costs one SVD a site and loads the model a second time.
    Source: Meng et al., "PiSSA", 2024, arXiv 2404.02948, section 4, for the nuclear norm; Guo et al., "LQ-LoRA", 2023,
    arXiv 2311.12023, for the Frobenius norm.
    """

    requires = {"mergeable", "beside_base", "foldable"}

    @torch.no_grad()
    def start(self, run: Run) -> None:
        if run.step:
            return  # resumed: found when the run began
        assert run.weights is not None, "a run that is analysed has weights"
        sites = {module.adapter.site.name: module for _, module in run.adapted()}
        frobenius: dict[str, float] = {}
        nuclear: dict[str, float] = {}
        for site, weight in run.weights.originals():
            if site in sites:
                error = weight.to(run.device) - sites[site].merged_weight()
                frobenius[site], nuclear[site] = _norms(error)
        self.note(frobenius=frobenius, frobenius_mean=fmean(frobenius.values()))
        self.note(nuclear=nuclear, nuclear_mean=fmean(nuclear.values()))


def _norms(error: Tensor) -> tuple[float, float]:
    """Frobenius and nuclear norm."""
    values = torch.linalg.svdvals(error)
    return float(values.square().sum().sqrt()), float(values.sum())
