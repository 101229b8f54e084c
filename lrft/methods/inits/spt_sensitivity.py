"""SPT: a budget of parameters laid where the squared gradients are largest."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Placed, budget
from lrft.core.frozen import Quantizer
from lrft.core.notes import say
from lrft.core.stages import Evidence, Init, Plan, SitePlan
from lrft.methods.inits._shares import check_wanted, in_proportion, sizes
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import AdapterConfig, Field, MethodConfig
from lrft.registry.errors import RecipeError

GRID, STEPS = 50, 79  # budgets of 1e6 of the paper: tau = 0.02e6, 0.04e6, ..., 1.58e6

FAR = 0.05  # of the budget; what is nearer is not told


@INITS.register
class SPTChoice(Init):
    """Sensitivity-aware choice: what trains of every weight, within one budget of numbers for all.

        s      = the mean of G * G over micro-batches,  G = dL/dW of one
        c_i    = entries of weight i among the tau of largest s in all weights
        weight i gets    its low-rank module, of m_i = r (in + out) numbers,  where c_i >= m_i / `threshold`
                         its c_i most sensitive entries,                      where 0 < c_i < m_i / `threshold`
                         nothing,                                             where c_i = 0

    tau is, of T / 50, 2 T / 50, ..., 79 T / 50, rounded up, the one at which the numbers of all weights together are
    nearest to the budget T = `budget` or, without it, `share` of all entries; of two that are as near the larger. Every
    micro-batch counts alike, by the gradient of its mean loss, so that other micro-batches choose otherwise. Of equal s
    the first are taken.

    Shapes: G, s (out, in), in float32. W' = W at step 0.
    Trains: what the adapter trains, about T numbers in all; a dry run shows T, as entries. The base gives up nothing.
    Source: as of `adapter: spt_sensitivity`: its rule, 16 batches, `threshold` 5 (10 in the released scripts).
    Departures: the grid of tau is the paper's 0.02, 0.04, ..., 1.58
    million, which serves its budgets of up to a million there and is stretched with the budget here. No norms and
    biases, whose rule is another one.
    """

    provides = {"kept_base"}
    requires = {"placed", "backward"}
    needs = ("batch_fisher",)

    config: Config

    class Config(MethodConfig):
        share: float = Field(
            0.01, gt=0, le=1, description="numbers that train, as a share of all adapted entries"
        )
        budget: int | None = Field(None, gt=0, description="numbers that train, instead of the share")
        threshold: float = Field(
            5.0, gt=0, description="a module costs at most so often the entries it stands for"
        )
        batches: int = Field(
            16, gt=0, description="training micro-batches that sensitivities are measured on"
        )

    def signal_options(self, name: str, config: AdapterConfig) -> dict[str, object]:
        return {"weighed": False}

    def wanted(self, plan: Plan) -> int:
        """The budget."""
        total = sum(sizes(plan).values())
        return check_wanted(self.config.budget or budget(self.config.share, total), total, "init.budget")

    def foresee(self, plan: Plan) -> Plan:
        """The budget as entries, in proportion to the sizes of the weights."""
        return in_proportion(plan, "entries", sizes(plan), self.wanted(plan))

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """Modules and entries at the tau that comes nearest to the budget."""
        assert evidence is not None
        names, wanted = list(sizes(plan)), self.wanted(plan)
        taus = [-(-wanted * step // GRID) for step in range(1, STEPS + 1)]
        order = ranked([evidence.signals[name]["batch_fisher"] for name in names], taus[-1])
        costs = torch.tensor([_module(plan[name]) for name in names])

        def numbers(tau: int) -> tuple[Tensor, Tensor]:
            """Sensitive entries of every weight, and how many numbers train there."""
            counts = torch.bincount(order[:tau], minlength=len(names))
            return counts, torch.where(self.structured(counts, costs), costs, counts)

        best = min(reversed(taus), key=lambda tau: abs(int(numbers(tau)[1].sum()) - wanted))
        counts, there = numbers(best)
        _tell(int(there.sum()), wanted)
        modules = self.structured(counts, costs)
        found = dict(plan)
        for name, count, module in zip(names, counts.tolist(), modules.tolist(), strict=True):
            chosen = plan[name].changed(entries=None if module else count)
            found[name] = chosen if count else SitePlan(plan[name].site)
        return found

    def structured(self, counts: Tensor, costs: Tensor) -> Tensor:
        """Which weights get a module."""
        return (counts > 0) & (counts >= costs / self.config.threshold)

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        if isinstance(adapter, Placed):
            adapter.place(largest(signal["batch_fisher"], len(adapter.places)))


def ranked(scores: list[Tensor], count: int) -> Tensor:
    """Of which weight the largest, second largest, ... of all scores is, for `count` of them; of equals the first.

    Raises:
        RecipeError: a score is no number.
    """
    values, owners = [], []
    for index, score in enumerate(scores):
        flat = score.flatten()
        if flat.isnan().any():
            raise RecipeError("sensitivities are not finite; use other rows (data.train), or float32", "init")
        best = flat.topk(min(count, len(flat))).values
        values.append(best)
        owners.append(torch.full_like(best, index, dtype=torch.int64))
    order = torch.cat(values).sort(descending=True, stable=True).indices[:count]
    return torch.cat(owners)[order]


def _tell(found: int, wanted: int) -> None:
    """Say so where modules leave a gap at the budget."""
    if abs(found - wanted) > FAR * wanted:
        say(
            f"init: {found:,} numbers train, the nearest to the budget of {wanted:,} that modules and entries make"
        )


def _module(entry: SitePlan) -> int:
    return int(entry.setting("rank") * (entry.site.in_features + entry.site.out_features))
