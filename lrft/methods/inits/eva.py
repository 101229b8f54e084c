"""EVA: look along the principal components of the inputs, and give rank to the sites whose inputs they explain."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.params import Site
from lrft.core.stages import Evidence, Init, Plan, SitePlan
from lrft.registry.axes import INITS
from lrft.registry.config import Field, Iterator, Literal, MethodConfig, Problem, RecipeView


@INITS.register
class EVA(Init):
    """Explained variance adaptation: A lies along principal components of the inputs, which also share out the rank.

        V = leading round(rho r) principal components of the site's inputs
        rank of a site = how many of the N largest explained-variance ratios of all sites are its own
        A = V[:rank],  B = 0

    with r the site's rank before, N the sum of all of these, rho = `rho` (1 keeps all ranks). V is from an incremental
    PCA of the inputs at answer tokens (`tokens: answers`) or at all (`tokens: all`), which ends when every component
    that a rank would be spent on has settled: cosine with itself one step before >= `tau`, and after `batches`
    micro-batches at the latest. `whiten: true` divides each row of A by the root of its singular value.
    `adjust_scaling: true` changes alpha with the rank, so that the scale s of every site stays.

    Shapes: V (round(rho r), in), A (rank, in), so A A^T = I without `whiten`; B (out, rank). W' = W at step 0. A site
    left without any rank has no adapter.
    Trains: what the adapter trains at its new rank, for LoRA the sum over sites of rank (in + out) numbers. The base
    gives up nothing.
    Source: Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", 2024,
    arXiv 2410.07170, as in PEFT's code.
    Departures: calibration ends after `batches` micro-batches at the latest, and what has not settled then is warned
    of, where PEFT goes on; alpha keeps the scale s of every site under rsLoRA too, where PEFT multiplies it by new
    rank / old; of equal ratios the earlier site's counts first, where PEFT leaves it to the sort; sites that share an
    input but differ in rank have components of their own.
    """

    provides = {"kept_base"}
    requires = {"low_rank"}
    needs = ("input_pca",)

    config: Config

    class Config(MethodConfig):
        rho: float = Field(
            2.0, ge=1, description="a site's rank is at most rho times its own; 1 keeps all ranks"
        )
        tau: float = Field(
            0.99, ge=0, le=1, description="cosine with the step before at which one has settled"
        )
        whiten: bool = Field(False, description="divide each row of A by the root of its singular value")
        adjust_scaling: bool = Field(
            True, description="change alpha with the rank, so that every scale stays"
        )
        tokens: Literal["answers", "all"] = Field("answers", description="whose inputs are decomposed")
        batches: int = Field(256, gt=0, description="most micro-batches; fewer when the components settle")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Answers of texts that have none."""
            if self.tokens == "answers" and recipe["model.head"] is not None:
                yield Problem("init.tokens", "a text that is given a label has no answer; write all")

    def signal_options(self, name: str, config: Any) -> dict[str, object]:
        return {
            "components": round(config.rank * self.config.rho),
            "rank": config.rank,
            "tau": self.config.tau,
            "needed": distribute,
            "tokens": self.config.tokens,
        }

    def most_rank(self, site: Site) -> int:
        return site.in_features  # components of the inputs; B is zero, so the outputs set no limit

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan with the ranks redistributed: their sum stays."""
        assert evidence is not None, "ranks are decided from measured inputs"
        before = {name: site for name, site in plan.items() if site.rank is not None}
        found = {name: evidence.signals[name]["input_pca"] for name in before}
        ratios = {name: found[name][:, plan[name].site.in_features + 1] for name in before}
        ranks = distribute(ratios, sum(site.rank or 0 for site in before.values()))
        self._warn_of_unsettled({name: found[name][: ranks[name], -1] for name in before})
        return plan | {name: self._resized(site, ranks[name]) for name, site in before.items()}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        r, width = A.shape
        found = signal["input_pca"].to(A.device)
        if r > found.shape[0]:
            raise ValueError(
                f"rank {r} needs as many components of the inputs, and {found.shape[0]} are known"
            )
        rows = found[:r, :width]
        A.copy_(rows / found[:r, width, None].sqrt() if self.config.whiten else rows)
        B.zero_()

    def _resized(self, site: SitePlan, rank: int) -> SitePlan:
        """A site's plan at its new rank; no adapter without one."""
        if rank == 0:
            return replace(site, config=None)
        if rank == site.rank or not self.config.adjust_scaling:
            return site.changed(rank=rank)
        ratio = rank / (site.rank or 1)
        return site.changed(
            rank=rank, alpha=site.setting("alpha") * (ratio**0.5 if site.setting("rslora") else ratio)
        )

    def _warn_of_unsettled(self, cosines: dict[str, Tensor]) -> None:
        open_sites = sum(bool((found < self.config.tau).any()) for found in cosines.values())
        if open_sites:
            warnings.warn(
                f"init.batches: the components of {open_sites} of {len(cosines)} layers had not settled after "
                f"{self.config.batches} micro-batches; raise it, or lower init.tau",
                stacklevel=2,
            )


def distribute(ratios: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """Site -> its rank: how many of the `budget` largest explained-variance ratios of all sites are its own.

    Args:
        ratios: site -> (k,) falling; of equal ones the earlier site's count first.
        budget: sum of the ranks.

    Raises:
        ValueError: there are fewer ratios than that.
    """
    owners = [site for site, found in ratios.items() for _ in range(found.shape[0])]
    if len(owners) < budget:
        raise ValueError(f"a budget of {budget} is more than the {len(owners)} components of the inputs")
    order = torch.cat([found.double().cpu() for found in ratios.values()]).argsort(
        descending=True, stable=True
    )
    counts = Counter(owners[index] for index in order[:budget].tolist())
    return {site: counts[site] for site in ratios}
