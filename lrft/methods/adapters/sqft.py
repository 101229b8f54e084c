"""SQFT: a sparse base in few bits, and an adapter whose merge keeps the zeros and the bits."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.callback import TimedMethod
from lrft.core.frozen import FrozenLinear
from lrft.core.on_grid import InGroups, OnGrid
from lrft.core.params import Site
from lrft.methods.adapters._groups import check_groups
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.methods.adapters._rank_draws import RankDraws, sub_rank
from lrft.ops.bits import pack_bits, unpack_bits
from lrft.ops.formed import WithoutBias
from lrft.ops.merged_matmul import merged_linear
from lrft.ops.straight_through import straight_through
from lrft.ops.uniform import Grid
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import (
    ADDED,
    AdapterConfig,
    Field,
    Iterator,
    Literal,
    Problem,
    RecipeView,
    model_validator,
)
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json


@ADAPTERS.register
class SQFT(OnGrid, Adapter):
    """SparsePEFT: what is added to a pruned weight has its zeros, with `bits` its grid too; merging loses neither.

        W_p = W * M
        W'  = W_p + s (B A) * M                              y = x W_p^T + drop(x) (W' - W_p)^T + b
        W'  = Q(Q(W_p) + s (B A) * M)                        y = drop(x) W'^T + b          with `bits`
        Q(V) = q (n - z),  n = min(max(round(V / q) + z, 0), 2^bits - 1)

    with s = `alpha` / R, R = `rank`, * entry by entry, drop dropout of probability `dropout`, M the mask of kept
    entries: of every row the share `sparsity` is 0, those of least |W_ij| |x_j| by `init: wanda`. `sparsity: null`
    takes a base that is sparse already: M = (W != 0). With `bits` what is rounded to 0 is not kept either: M = (Q(W_p)
    != 0). `onto: exact` adds to W_p as it was, W' = Q(W_p + s (B A) * M), with its M. q and z are of each `group_size`
    weights of a row of W_p, which they span from end to end, 0 included, q as half precision has it; z is an integer,
    so 0 stays exactly 0. They are frozen, and gradients pass through the roundings.

    `ranks: [32, 24, 16]` is neural low-rank adapter search: every step trains B[:, :k] A[:k] with k drawn from these
    for each layer of the model, s stays; outside of steps, and in the merge, k is the middle one of the ranks, the
    larger of two.

    Shapes: A (R, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, R) = 0; W' at step 0 is W_p, rounded with `bits`. Beside
    them the mask in 1 bit a weight, q and z (out, in / `group_size`).
    Trains: R (in + out) numbers per site. The pass keeps x, and dropped x; W' is formed again in the backward pass. A
    step takes five products as large as W's, three without dropout or with `bits`, where a frozen W takes two.
    Source: Munoz et al., "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models", EMNLP Findings
    2024, arXiv 2410.03750, and the authors' code, whose layer adds to Q(W_p), and to W_p by the commands it comes with.
    Departures: settled here: q and z are those of rounding to nearest, where the code has GPTQ's, and a storage of the
    base (`quantization`) is beside it: the weight that is pruned and rounded is the one the storage reads back. The
    gradient passes the bounds too, as in the code. Ranks are drawn once a step, not in every pass, and for every site
    of a layer, where the commands name queries, keys and values; there is no search for the best sub-adapter but the
    code's heuristic. The base keeps its pruned entries, which take part in nothing while the adapter is on.
    Advice: the authors' runs have rank 32, alpha 64, dropout 0.1, learning rate 3e-4, with `bits: 4` 1e-4, and W_p at
    half the entries. `lrft merge --dtype float32` keeps W' to the last bit, and so does `--requantize
    int_groups` in its bits; zeros stay zeros in any precision.
    """

    aliases = {
        "sparsepeft sparse_peft": "adapter: sqft\ninit: wanda",
        "qa_sparsepeft": "adapter: {method: sqft, bits: 4}\ninit: wanda",
        "nls shears neural_lora_search": "adapter: {method: sqft, ranks: [32, 24, 16]}\ninit: wanda",
    }
    provides = {"adapters", "mergeable", "moved_start", "chosen_entries"}
    requires = {"one_stage"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config
    live: int

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536)
        alpha: float = Field(64.0, gt=0, le=1_000_000)
        dropout: float = Field(0.1, ge=0, lt=1)
        sparsity: float | None = Field(
            0.5, gt=0, lt=1, description="share of every row that is pruned; null: the zeros of the base"
        )
        bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = Field(
            None, description="bits of a merged weight; null leaves it unrounded"
        )
        group_size: int = Field(128, gt=0, description="weights of a row that share a step, with `bits`")
        onto: Annotated[Literal["rounded", "exact"], ADDED] = Field(
            "rounded", description="the pruned weight that the change is added to, with `bits`"
        )
        ranks: list[int] | None = Field(
            None, min_length=2, description="ranks that steps are drawn from; the largest is `rank`"
        )

        @model_validator(mode="after")
        def _check_ranks(self) -> SQFT.Config:
            if self.onto == "exact" and self.bits is None:
                raise ValueError("onto is of weights that are rounded; write bits, or leave onto out")
            ranks = self.ranks or [self.rank]
            if min(ranks) < 1 or len({*ranks}) < len(ranks) or max(ranks) != self.rank:
                message = "ranks are different numbers from 1 on, and the largest is rank"
                raise ValueError(f"{message}; write rank: {max(ranks)}, each rank once")
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A pruning that nobody measured, or one that nobody asked for."""
            init = recipe.declared("init")
            wanda = init is not None and init.name == "wanda"
            if self.sparsity is not None and not wanda:
                message = "does not choose what adapter.sparsity prunes; write wanda, or adapter.sparsity: null for a "
                yield Problem("init.method", f"{message}base that has zeros already")
            if self.sparsity is None and wanda:
                yield Problem(
                    "adapter.sparsity", "null prunes nothing, and init: wanda chooses what; write 0.5"
                )
            if self.ranks is not None and recipe["model.compile"]:
                message = "adapter.ranks makes every step another program; write false"
                yield Problem("model.compile", message)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.A, self.B = empty_pair(config.rank, site)
        self.live = config.rank if config.ranks is None else sub_rank(config.ranks)
        self.chosen = False
        kept = torch.ones(site.out_features, site.in_features, dtype=torch.bool)
        self.register_buffer("mask", pack_bits(kept))
        if config.bits is not None:
            check_groups(config.group_size, site)
            groups = site.out_features, site.in_features // config.group_size, 1
            self.register_buffer("q", torch.ones(groups))
            self.register_buffer("z", torch.zeros(groups))
        self.reset()

    @classmethod
    def timed(cls, config: Config) -> TimedMethod | None:
        return None if config.ranks is None else RankDraws(config)

    def reset(self) -> None:
        start_pair(self.A, self.B)

    @torch.no_grad()
    def choose(self, weight: Tensor, size: Tensor) -> None:
        """Keep of every row the entries of largest `size` (out, in), of those that are not 0 already.

        Args:
            weight: (out, in).
        """
        many = weight.shape[1] if self.config.sparsity is None else self.kept_per_row
        pruned = weight.shape[1] - many
        places = size.float().sort(dim=1, stable=True).indices[:, pruned:]  # of equals the last stay
        kept = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device).scatter_(1, places, True)
        self.mask = pack_bits(kept & (weight != 0))
        self.chosen = True

    @property
    def kept_per_row(self) -> int:
        """How many entries of a row `sparsity` leaves."""
        assert self.config.sparsity is not None
        width = self.site.in_features
        return width - int(self.config.sparsity * width)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Without an init that chose, entries are kept by their size alone: for counting, and where no data is."""
        if self.config.sparsity is None and bool((weight != 0).all()):
            message = (
                f"null takes the zeros of the base, and {self.site.name} has none; write a share such as 0.5"
            )
            raise RecipeError(message, "adapter.sparsity")
        if not self.chosen:
            self.choose(weight, weight.abs())
        if self.config.bits is not None:
            grid = Grid.over(self._grouped(self.pruned(weight.float())), self.config.bits).in_half()
            self.q, self.z = grid.step, grid.zero
            if self.config.onto == "rounded":
                self.mask = pack_bits(self._rounded(self.pruned(weight.float())) != 0)

    def kept(self) -> Tensor:
        """M, (out, in) bool."""
        return unpack_bits(self.mask, self.site.in_features)

    def pruned(self, weight: Tensor) -> Tensor:
        """W_p, (out, in) in the dtype of `weight`."""
        return weight * self.kept()

    def masked(self) -> Tensor:
        """The change s (B A) * M of the ranks in use, (out, in) float32 with a graph."""
        return (self.scaling * self.B[:, : self.live] @ self.A[: self.live]) * self.kept()

    def merged(self, weight: Tensor) -> Tensor:
        sparse = self.pruned(weight.float())
        if self.config.bits is None:
            return (sparse + self.masked()).to(weight.dtype)
        start = self._rounded(sparse) if self.config.onto == "rounded" else sparse
        return straight_through(start + self.masked(), self._rounded).to(weight.dtype)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.merged(weight.float()) - weight).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        p = self.config.dropout if self.training else 0.0
        if p == 0 or self.config.bits is not None:
            return merged_linear(F.dropout(x, p), base, self.merged, self.parameters())
        added = merged_linear(
            F.dropout(x, p), WithoutBias(base), lambda weight: self.masked(), self.parameters()
        )
        return merged_linear(x, base, self.pruned, ()) + added

    @property
    def grid_settings(self) -> dict[str, Json] | None:
        if self.config.bits is None:
            return None
        return {"bits": self.config.bits, "group_size": self.config.group_size}

    def on_grid(self, merged: Tensor) -> InGroups | None:
        if self.config.bits is None:
            return None
        grid, groups = self._grid(), self._grouped(merged.float())
        codes = grid.codes(groups)
        if not torch.equal(grid.decoded(codes), groups):
            return None
        step, zero = grid.step[..., 0].float(), grid.zero[..., 0].to(torch.uint8)
        return InGroups(codes.to(torch.uint8).view(merged.shape), zero, step)

    def _rounded(self, weight: Tensor) -> Tensor:
        return self._grid().nearest(self._grouped(weight)).view(weight.shape)

    def _grid(self) -> Grid:
        assert self.config.bits is not None
        return Grid(self.get_buffer("q"), self.get_buffer("z"), 2**self.config.bits - 1)

    def _grouped(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, groups, size)."""
        return weight.view(len(weight), -1, self.config.group_size)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features))
