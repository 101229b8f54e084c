"""LoRAPrune: heads and channels are pruned by what the adapter's gradients say of the whole weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.run import Run
from lrft.core.units import Pruner, Units, prunable
from lrft.registry.axes import PRUNERS
from lrft.registry.config import Field, Iterator, MethodConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError

TINY = 1e-8  # of the norm of a layer's sums, as in the authors' code


@PRUNERS.register
class LoRAPrune(Pruner):
    """Structured pruning while an adapter trains: the gradient of W is estimated by those of its factors.

        after every backward pass, of every adapted layer of a block:
            G = dB A + B dA - dB dA                   (B A less what a step of rate 1 would leave)
            I = |G * (W + s B A)|,  v_u = sum of I over the rows, or columns, of unit u,  v <- v / |v|
            S <- 0.9 S + 0.1 sum of v over the layers of the block
        every `every` steps where w < t < T - c:
            the int(p n) units of a block with the smallest S go, those that went before first
            p = r + (`begin` - r) (1 - (t - w) / (T - w - c))^3,  and r at t = T - c

    with t of T steps done, w = `warmup` T, c = `cooldown` T, r = `ratio`, s the adapter's scale, dA, dB the clipped
    gradients. A unit is the query heads that share a key head, with it and its values (rows of q, k, v, columns of o),
    or a channel of the feed-forward block (rows of gate and up, a column of down). One that went is computed as 0 from
    then on; `lrft merge` cuts its rows and columns off, and says in units.json which are left.

    Shapes: W, G, I (out, in), A (rank, in), B (out, rank), S, v (n) of n units. Changes nothing at step 0.
    Trains: what the adapter trains; no gradient of W is formed. One (out, in) in float32 is there at a time.
    State: S, and which units stay: n numbers and n bytes for every block.
    Source: Zhang et al., "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning", 2024, arXiv
    2305.18403, and the authors' code, whose |.| stands here where the paper has a square.
    Departures: key heads go with all their query heads (the code counts 32 heads of each). p reaches r when the last
    phase begins, where the code stops at the last multiple of `every` before it. Units are hidden where o and down read
    them instead of at q, k, v, gate and up, which gives the same outputs and gradients.
    Advice: adapt every linear layer: one without an adapter has no say. With `whole_first: 0` and `whole_last: 0` all
    layers are of one size, and the merged model is of the base's own architecture; else it brings a file of code, and
    is loaded with trust_remote_code.
    """

    aliases = {
        "structured_pruning": "prune: loraprune",
    }
    provides = {"hidden_units"}
    requires = {
        "adapters",
        "low_rank",
        "linear_delta",
        "trained_pair",
        "factor_product",
        "fixed_base",
        "kept_base",
        "first_order",
        "backward",
        "one_stage",
    }

    config: Config

    class Config(MethodConfig):
        ratio: float = Field(0.5, gt=0, lt=1, description="share of the units of each pruned block that goes")
        begin: float = Field(0.0, ge=0, lt=1, description="share that the schedule rises from")
        every: int = Field(10, gt=0, description="optimizer steps between two prunings")
        warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps before the first pruning")
        cooldown: float = Field(0.1, ge=0, lt=1, description="share of the steps after the last one")
        whole_first: float = Field(
            0.1, ge=0, lt=1, description="share of the layers, the first ones, that stay whole"
        )
        whole_last: int = Field(1, ge=0, description="layers, the last ones, that stay whole")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Shares that leave no time or nothing to prune, and what sees no gradient or no end."""
            if self.begin > self.ratio:
                yield Problem("prune.begin", f"is more than ratio {self.ratio}; write at most that")
            if self.warmup + self.cooldown >= 1:
                message = "and cooldown leave no step to prune in; write shares that sum to less than 1"
                yield Problem("prune.warmup", message)
            if recipe["optimizer.per_layer"]:
                message = (
                    "frees gradients before all layers of a block have theirs (prune: loraprune); write false"
                )
                yield Problem("optimizer.per_layer", message)
            if recipe["model.head"] is not None:
                yield Problem(
                    "model.head", "a model that scores texts is not written smaller (prune); remove one"
                )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scores: dict[str, Tensor] = {}  # S, by block
        self.units: list[Units] = []

    def start(self, run: Run) -> None:
        every = list(run.model.pruned.units.values())
        self.units = prunable(every, self.config.whole_first, self.config.whole_last)
        sites = _sites(run)
        for units in self.units:
            if not any(layer in sites for layer in units.layers):
                message = (
                    f"adapts no layer of {units.name}, so nothing tells its units apart; adapt all-linear"
                )
                raise RecipeError(message, "adapter.targets")
        self.scores = {
            units.name: self.scores.get(units.name, torch.zeros(units.count)).to(run.device)
            for units in self.units
        }

    def after_backward(self, run: Run) -> None:
        sites, factor = _sites(run), _clipped(run)
        found = {units.name: importance(units, sites, factor) for units in self.units}
        if all(bool(score.isfinite().all()) for score in found.values()):
            for name, score in found.items():
                self.scores[name] = 0.9 * self.scores[name] + 0.1 * score
        share = self.share(run.step, run.total_steps)
        if share is not None:
            for units in self.units:
                hide(run.model.pruned.stays[units.name], self.scores[units.name], share)
        stays = torch.cat([run.model.pruned.stays[units.name] for units in self.units])
        run.record(pruned=1 - stays.float().mean())

    def share(self, step: int, total: int) -> float | None:
        """The share of units that is gone after a pruning in the step after `step` finished ones; None without one."""
        config = self.config
        begin, end = config.warmup * total, total - config.cooldown * total
        if step == min(math.ceil(end), total - 1):
            return config.ratio
        if step % config.every or not begin < step < end:
            return None
        return config.ratio + (config.begin - config.ratio) * (1 - (step - begin) / (end - begin)) ** 3

    def finish(self, run: Run) -> None:
        stays = run.model.pruned.stays
        run.summary["units"] = {units.name: int(stays[units.name].sum()) for units in self.units}

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def kept_later(self, run: Run) -> dict[str, Any]:
        units = run.model.pruned.units.values()
        return {"scores": {one.name: torch.empty(one.count, device="meta") for one in units}}

    def load_state_dict(self, state: Any) -> None:
        self.scores = dict(state["scores"])


@torch.no_grad()
def importance(units: Units, sites: dict[str, Adapted], factor: float | Tensor = 1.0) -> Tensor:
    """What one backward pass says of the units of a block, (count,).

    Args:
        factor: what clipping will multiply the gradients by.
    """
    total: float | Tensor = 0.0
    for layer in units.layers:
        if layer in sites:
            values = estimated_gradient(sites[layer], factor).mul_(sites[layer].merged_weight()).abs_()
            sums = units.sums(layer, values)
            total = total + sums / (sums.norm() + TINY)
    assert isinstance(total, Tensor), "a block without an adapter is refused"
    return total


def estimated_gradient(site: Adapted, factor: float | Tensor = 1.0) -> Tensor:
    """DB A + B dA - dB dA, (out, in) float32."""
    A, B = site.adapter.get_parameter("A"), site.adapter.get_parameter("B")
    dA, dB = (torch.zeros_like(p) if p.grad is None else p.grad * factor for p in (A, B))
    return dB.float() @ A.float() + B.float() @ dA.float() - dB.float() @ dA.float()


def hide(stays: Tensor, scores: Tensor, share: float) -> None:
    """Hide int(share n) of n units, in place: those that are hidden already, then those of the smallest scores."""
    count = min(int(len(stays) * share + 1e-9), len(stays) - 1)
    order = torch.argsort(scores * stays, stable=True)
    order = order[stays[order].argsort(stable=True)]
    stays.fill_(1).index_fill_(0, order[:count], 0)


def _sites(run: Run) -> dict[str, Adapted]:
    return {module.adapter.site.name: module for _, module in run.adapted()}


def _clipped(run: Run) -> float | Tensor:
    """What the global norm will multiply every gradient by."""
    grads = [info.param.grad for info in run.parameters if info.param.grad is not None]
    if run.clip is None or not grads:
        return 1.0
    return (run.clip / (torch.nn.utils.get_total_norm(grads) + 1e-6)).clamp(max=1.0)
