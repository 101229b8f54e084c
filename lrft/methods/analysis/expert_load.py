"""How evenly routers send tokens to their experts."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, cast

import torch

from lrft.core.analysis import Analysis, State
from lrft.core.routed import Routed
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES
from lrft.registry.config import MethodConfig


class Totals(State):
    """What a resume needs: also what each router's experts got so far."""

    totals: dict[str, list[float]]


@ANALYSES.register
class ExpertLoad(Analysis):
    """Balance of the experts of every router, in metrics.jsonl for each step and in result.json for the whole run.

        entropy = -sum_e f_e ln f_e / ln E    1 where all experts get the same, 0 where one gets everything
        most    = E max_e f_e                 1 and E there
        idle    = share of the experts that got nothing

    with f_e the share of token slots that expert e of a router's E got, padding left out (of a soft mixture the share
    of the weight; of `flylora` rank components are the experts), over all micro-batches and processes. A router of
    one expert has entropy 1.

    Shapes: f (E) of every router.
    Found: in the metrics of a step `expert_entropy`, `expert_most` and `expert_idle`, means over the routers; in
    result.json `entropy`, `most` and `idle` for each router over all steps, and their means. Costs a sum over E numbers
    a pass, and one wait for the device a step.
    Source: none needed; shares and their entropy are what papers on mixtures plot.
    """

    requires = {"routed"}

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.totals: dict[str, list[float]] = {}

    def start(self, run: Run) -> None:
        for adapter in routed(run):
            adapter.take_load()  # counting begins

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        loads = {
            f"{adapter.site.name} {router}".rstrip(): load
            for adapter in routed(run)
            for router, load in adapter.take_load().items()
        }
        if not loads:
            return
        together = run.summed(torch.cat([load.float() for load in loads.values()]))
        counts = [part.tolist() for part in together.cpu().split([len(load) for load in loads.values()])]
        for router, count in zip(loads, counts, strict=True):
            before = self.totals.get(router, [0.0] * len(count))
            self.totals[router] = [old + new for old, new in zip(before, count, strict=True)]
        found = [balance(count) for count in counts]
        run.record(**{f"expert_{name}": round(fmean(one[name] for one in found), 6) for name in found[0]})

    def finish(self, run: Run) -> None:
        found = {router: balance(count) for router, count in self.totals.items()}
        for name in ("entropy", "most", "idle"):
            self.note(**{name: {router: one[name] for router, one in found.items()}})
            self.note(**{f"{name}_mean": fmean(one[name] for one in found.values())})
        super().finish(run)

    def state_dict(self) -> Totals:
        return {"found": self.found, "totals": self.totals}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.totals = cast(Totals, state)["totals"]


def routed(run: Run) -> list[Any]:
    """The adapters that have experts; beside them others may stand, as on the attention."""
    return [site.adapter for _, site in run.adapted() if isinstance(site.adapter, Routed)]


def balance(counts: list[float]) -> dict[str, float]:
    """What the docstring's formulas say of what each expert got; of nothing at all, that all got the same."""
    total, experts = sum(counts), len(counts)
    shares = [count / total if total else 1 / experts for count in counts]
    entropy = -sum(f * math.log(f) for f in shares if f) / math.log(experts) if experts > 1 else 1.0
    return {
        "entropy": entropy,
        "most": experts * max(shares),
        "idle": sum(f == 0 for f in shares) / experts,
    }
