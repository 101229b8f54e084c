"""What the allocators share that change ranks while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lrft.core.callback import TimedMethod
from lrft.core.elastic import Elastic
from lrft.core.run import Run
from lrft.core.stages import Evidence, Plan, Planner, ranks_of
from lrft.registry.config import MethodConfig
from lrft.registry.errors import RecipeError


class Dynamic(Planner, TimedMethod):
    """An allocator that is a callback too: it plans nothing away, and prunes or grows components between steps.

    Attributes:
        adapters: site -> elastic adapter with singular values or gates E; filled at the start.
        ranks: site -> rank as last decided; it ends in the run's summary.
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.adapters: dict[str, Elastic] = {}
        self.ranks: dict[str, int] = {}

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan as it is, checked for room for the target."""
        if ranks := ranks_of(plan):
            self.check_target(ranks)
        return plan

    def check_target(self, capacities: list[int]) -> None:
        """Refuse an average target rank that the sites cannot hold; a method without one accepts everything.

        Raises:
            RecipeError: says what would fit.
        """
        target = self.target_rank
        if target is not None and target * len(capacities) > sum(capacities):
            message = (
                f"an average of {target} is more than the adapters hold (adapter.rank is "
                f"{sum(capacities) / len(capacities):g}); write a lower target or a higher adapter.rank"
            )
            raise RecipeError(message, "allocate.target_rank")

    @property
    def target_rank(self) -> int | None:
        """Average rank of a site at the end, of methods that have such a setting."""
        return getattr(self.config, "target_rank", None)

    def start(self, run: Run) -> None:
        self.adapters = gated_adapters(run, self.name)
        self.check_target(self.capacities)
        self.ranks = self.ranks or dict(zip(self.adapters, self.capacities, strict=True))

    def kept_later(self, run: Run) -> Mapping[str, object]:
        return {"ranks": {site: adapter.capacity for site, adapter in gated_adapters(run, self.name).items()}}

    def finish(self, run: Run) -> None:
        run.summary["ranks"] = dict(self.ranks)

    @property
    def capacities(self) -> list[int]:
        """Rank components of every site, pruned or not."""
        return [adapter.capacity for adapter in self.adapters.values()]

    @property
    def capacity(self) -> int:
        """Rank components of all sites together."""
        return sum(self.capacities)

    @property
    def target(self) -> int:
        """Rank components of all sites together at the end."""
        assert self.target_rank is not None, "asked of methods with a target alone"
        return self.target_rank * len(self.adapters)

    def decided(self, run: Run, kept: Tensor, importance: Tensor, **numbers: float) -> None:
        """Take the kept components as the ranks and record them, with the scores behind them.

        Waits for the device, so it is called only where something was decided. Recorded are `rank_total`, `numbers`,
        and by site `ranks`, `masks` (a 1 for every component that is kept) and `importance`.

        Args:
            kept: true at the components of all sites that are kept, one site after the other.
            importance: a score a component, of which a site's mean is recorded, or a score a site.
        """
        masks = [part.tolist() for part in kept.cpu().split(self.capacities)]
        self.ranks = {site: sum(mask) for site, mask in zip(self.adapters, masks, strict=True)}
        if len(importance) != len(masks):
            importance = torch.stack([part.mean() for part in importance.split(self.capacities)])
        run.record(
            rank_total=sum(self.ranks.values()),
            **numbers,
            ranks=dict(self.ranks),
            masks={
                site: "".join("01"[on] for on in mask)
                for site, mask in zip(self.adapters, masks, strict=True)
            },
            importance=dict(zip(self.adapters, importance.tolist(), strict=True)),
        )


def gated_adapters(run: Run, method: str) -> dict[str, Elastic]:
    """Site -> adapter, every one of them elastic with a parameter E.

    Raises:
        RecipeError: an adapter has no components to prune or grow.
    """
    found: dict[str, Elastic] = {}
    for _, module in run.adapted():
        adapter = module.adapter
        takes_a_penalty = hasattr(adapter, "regularizer")
        if not isinstance(adapter, Elastic) or adapter.components()[1] is None or not takes_a_penalty:
            message = f"{method} sets the singular values of components, which {adapter.name} does not have; "
            raise RecipeError(f"{message}choose adapter svd_lora or gated_lora", "allocate.method")
        found[adapter.site.name] = adapter
    return found


def factors(adapter: Elastic) -> tuple[Tensor, Tensor, Tensor]:
    """A (r, in), E (r,) and B (out, r) of an adapter that `gated_adapters` let through."""
    A, E, B = adapter.components()
    assert E is not None
    return A, E, B


def regularize(
    adapters: dict[str, Elastic], penalty: Callable[[Tensor, Tensor, Tensor], Tensor] | None
) -> None:
    """Add `penalty` of (A, B, mask) to the loss at every site, or nothing from now on."""
    for adapter in adapters.values():
        adapter.regularizer = penalty  # type: ignore[assignment]


def lowest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of `scores` (n,); of equal ones the first, so that the count is always exact."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[torch.argsort(scores, stable=True)[:count]] = True
    return chosen


@torch.no_grad()
def close(adapters: dict[str, Elastic], pruned: Tensor) -> None:
    """Set E = 0 where `pruned` (components of all sites) is true, in place; E keeps receiving gradients."""
    sizes = [adapter.capacity for adapter in adapters.values()]
    for adapter, mask in zip(adapters.values(), pruned.split(sizes), strict=True):
        factors(adapter)[1].masked_fill_(mask, 0.0)


def orthogonality(A: Tensor, B: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Weight (||A A^T - I||_F + ||B^T B - I||_F) over the shown components: the norms, not their squares."""
    shown, identity = mask[:, None], torch.diag(mask)
    A, B = A * shown, B * shown.mT
    rows: Tensor = torch.linalg.norm(A @ A.mT - identity)
    columns: Tensor = torch.linalg.norm(B.mT @ B - identity)
    return weight * (rows + columns)
