"""Trained rank pruning: every weight is cut to a low rank again and again while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrft.core.params import ParamInfo, check_single
from lrft.core.run import Run
from lrft.core.units import Pruner
from lrft.registry.axes import PRUNERS
from lrft.registry.config import Field, Iterator, MethodConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError


@PRUNERS.register
class TRP(Pruner):
    """Trained rank pruning: the weights that train are truncated by their energy, and the gradient is taken there.

        before steps 0, K, 2 K, ... and after the last one:
            W = U S V^T,  k = the smallest with S_1^2 + ... + S_k^2 >= e |S|^2,  W <- U_k S_k V_k^T
        in those steps:  dW <- dW + l U_k V_k^T,  a subgradient of l |W|_* (the nuclear norm)

    with K = `every`, e = `energy`, l = `nuclear`. Between them W moves freely, so its rank is again the full one, with
    a tail that the next truncation drops. After the last step `final`, where it is set, drops the singular values below
    it instead, which keeps the function.

    Shapes: W (out, in), U_k (out, k), S_k (k), V_k (in, k). Step 0 is taken from the truncated weights.
    Trains: what `trainable` names; the ranks of the matrices of decoder layers among it fall. k (in + out) numbers say
    a matrix of rank k; result.json has the ranks.
    State: none.
    Source: Xu et al., "Trained Rank Pruning for Efficient Deep Neural Networks", 2018, arXiv 1812.02402, and the
    authors' code, in which e is 0.9, and K 5 in its script.
    Departures: made for convolutions, which are matrices in other shapes; carried to linear layers, whose weight is
    one. K is counted over the whole run and not anew in every epoch. In bfloat16 every entry is rounded, and what is
    left has a low rank no more: train in float32.
    Advice: `lrft merge --factors` writes U_k S_k^1/2 and S_k^1/2 V_k^T as two layers, where that is smaller.
    `nuclear: 0.0003` is the paper's for ResNet-20; its runs begin from weights that are drawn.
    """

    aliases = {
        "trained_rank_pruning rank_pruning": "adapter: null\ntrainable: full\nprune: trp",
    }
    requires = {"base_weights", "first_order"}

    config: Config

    class Config(MethodConfig):
        every: int = Field(5, gt=0, description="optimizer steps between two truncations")
        energy: float = Field(
            0.9, gt=0, le=1, description="share of the squared singular values that is kept"
        )
        nuclear: float = Field(
            0.0, ge=0, description="weight of the nuclear norm in the steps that begin truncated"
        )
        final: float | None = Field(
            None,
            ge=0,
            description="singular values below this are dropped after the last step, instead of by energy",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What keeps weights of its own that a truncation would not reach, or has used gradients up."""
            optimizer = recipe.declared("optimizer")
            if recipe["trainable.update"] == "master":
                message = (
                    "keeps float32 copies that are not truncated (prune: trp); write stochastic or in_place"
                )
                yield Problem("trainable.update", message)
            if optimizer is not None and "averaged" in optimizer.provides:
                message = f"{optimizer.name} averages weights, which have no low rank then (prune: trp); choose another"
                yield Problem("optimizer.method", message)
            if self.nuclear and recipe["optimizer.per_layer"]:
                message = (
                    "updates before the nuclear norm is added (prune: trp); write false, or prune.nuclear: 0"
                )
                yield Problem("optimizer.per_layer", message)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.matrices: list[ParamInfo] = []
        self.directions: dict[str, Tensor] = {}  # U_k V_k^T of the step that began truncated

    def start(self, run: Run) -> None:
        check_single(run.parameters, "prune: trp")
        self.matrices = [i for i in run.parameters if i.role == "matrix" and not i.site and i.block]
        if not self.matrices:
            message = "names no matrix of a decoder layer, so there is no rank to prune; write full"
            raise RecipeError(message, "trainable.weights")

    def before_step(self, run: Run) -> None:
        self.directions = {}
        if run.step % self.config.every:
            return
        for info in self.matrices:
            U, _, Vh = truncate(info.param, energy=self.config.energy)
            if self.config.nuclear:
                self.directions[info.name] = U @ Vh

    def after_backward(self, run: Run) -> None:
        for info in self.matrices:
            if info.name in self.directions and info.param.grad is not None:
                info.param.grad.add_(
                    self.directions[info.name].to(info.param.grad), alpha=self.config.nuclear
                )
        self.directions = {}

    def after_step(self, run: Run) -> None:
        if run.step < run.total_steps:
            return
        kept = {"energy": self.config.energy} if self.config.final is None else {"least": self.config.final}
        run.summary["ranks"] = {info.name: len(truncate(info.param, **kept)[1]) for info in self.matrices}


@torch.no_grad()
def truncate(weight: Tensor, energy: float = 1.0, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a weight to a lower rank, in place; its singular triplets that are left, in float32.

    Args:
        energy: share of the squared singular values that is kept.
        least: singular values below this are dropped.
    """
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    sums = S.double().square().cumsum(0)
    k = int((sums < energy * sums[-1]).sum()) + 1
    k = max(1, min(k, int((least <= S).sum()), len(S)))
    if k < len(S):
        weight.copy_((U[:, :k] * S[:k]) @ Vh[:k])
    return U[:, :k], S[:k], Vh[:k]
