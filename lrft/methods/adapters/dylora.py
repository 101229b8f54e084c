"""DyLoRA: a LoRA whose every prefix of rank components is a LoRA too."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import ADAPTERS


@ADAPTERS.register
class DyLoRA(LoRA):
    """Dynamic low-rank adaptation: trained at many ranks at once, used at any of them.

        y  = x W^T + b + s_k (drop(x) A[:k]^T) B[:, :k]^T
        W' = W + s_k B[:, :k] A[:k]

    with s_k = `alpha` / k, or `alpha` / sqrt(k) with `rslora: true`; 1 <= k <= r = `rank`; drop is dropout of
    probability `dropout`. In training k and the first component that trains are drawn anew for every step by
    `allocate: dylora` (components below the first are constants); without that allocation k stays r and this is `lora`.
    In evaluation, in a merge and on export k = r. Truncated to rank k, the adapter is its k leading components with the
    scale s_k that they were trained with. `rank_pattern` and `alpha_pattern` as in `lora`.

    Shapes: A (r, in) and B (out, r) start as in `lora`, B = 0, so W' = W at step 0, for every k.
    Trains: r (in + out) numbers per site; in a step, those of the components that are live and not constant.
    Source: Valipour et al., "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free
    Low-Rank Adaptation", EACL 2023, arXiv 2210.07558, and the authors' code, where both factors carry sqrt(r / k) on
    top of alpha / r.
    Departures: none; the scale for rsLoRA is LoRA's carried over.
    """

    provides = {"adapters", "mergeable", "low_rank", "linear_delta", "nested", "trained_pair"}
    peft = LoRA.peft

    config: Config

    class Config(LoRA.Config):
        pass

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.live = config.rank
        self.first = 0

    def use(self, live: int, first: int = 0) -> None:
        """Train with the leading `live` directions, of which those below `first` are constants.

        Raises:
            ValueError: not 0 <= first < live <= rank.
        """
        if not 0 <= first < live <= self.config.rank:
            raise ValueError(f"{first} to {live} is no part of the ranks 0 to {self.config.rank}")
        self.live, self.first = live, first

    def scale(self, rank: int) -> float:
        """s_k of the adapter of this rank."""
        return float(self.config.alpha / (math.sqrt(rank) if self.config.rslora else rank))

    def prefix(self) -> Branch:
        """The branch as it is used in this step: s_k B[:, :k] A[:k]."""
        if not self.training or (self.live == self.config.rank and self.first == 0):
            return self.branch()
        A, B = self.A[: self.live], self.B[:, : self.live]
        if self.first:
            A = torch.cat([A[: self.first].detach(), A[self.first :]])
            B = torch.cat([B[:, : self.first].detach(), B[:, self.first :]], dim=1)
        return Branch(A, B, self.scale(self.live), dropout=self.config.dropout)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self.through(self.prefix(), x, base)

    @torch.no_grad()
    def truncate(self, rank: int) -> None:
        """Keep the leading `rank` directions, for good: the adapter is then the one of that rank.

        Raises:
            ValueError: it has fewer.
        """
        if not 1 <= rank <= self.config.rank:
            raise ValueError(f"the adapter was trained at ranks 1 to {self.config.rank}, not at {rank}")
        trains = self.A.requires_grad, self.B.requires_grad
        self.A = nn.Parameter(self.A[:rank].clone(), requires_grad=trains[0])
        self.B = nn.Parameter(self.B[:, :rank].clone(), requires_grad=trains[1])
        self.scaling = self.scale(rank)
        self.config = self.config.model_copy(update={"rank": rank})
        self.use(rank)
