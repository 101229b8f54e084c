"""LQ-LoRA: share every weight out between a low-rank part and a rounded one, and the bits over the layers."""

from __future__ import annotations

import zlib
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrft.core.adapter import Adapter, Factors
from lrft.core.frozen import Quantizer
from lrft.core.stages import Evidence, Init, Plan
from lrft.methods.inits._alternate import leading_factors, norm, set_factors, stored_without
from lrft.methods.inits._bit_program import assign
from lrft.ops.draws import seed_generators
from lrft.ops.linalg import Iterations
from lrft.registry.axes import INITS
from lrft.registry.config import (
    Annotated,
    Field,
    Iterator,
    Literal,
    MethodConfig,
    Problem,
    RecipeView,
    SVDIterations,
)
from lrft.registry.errors import RecipeError

OVERSAMPLING = 10


@INITS.register
class LQLoRA(Init):
    """Low-rank plus quantized matrix decomposition, with the bits shared out over the layers.

        Q = 0;  repeat  L = SVD_r(W - Q),  Q = q(W - L)  until |W - L - Q| no longer falls; the best L is kept
        L = U_r S_r V_r^T
        A = sqrt(S_r / s) V_r^T,  B = U_r sqrt(S_r / s)
        base: Q = q(W - s B A)

    with q the rounding of the layer's storage, r the rank, s the adapter's scale, at most `iterations` rounds; the SVD
    is randomised with `niter` subspace iterations, exact with `niter: exact`. With `weighting: fisher`, F = squared
    gradients of W summed over `batches` documents and D1, D2 the roots of the row and column means of F,

        L = D1^-1 SVD_r(D1 (W - Q) D2) D2^-1,  error = |sqrt(F) * (W - L - Q)|

    A constant F is `weighting: none`. With a `budget` of bits a weight every layer i gets storage settings j of its
    own:

        min sum_ij c_ij x_ij   subject to   sum_ij g_ij x_ij <= budget * weights,  sum_j x_ij = 1,  x_ij in {0, 1}

    with c_ij the squared error of layer i stored with settings j, from `plan_iterations` rounds, and g_ij their bits;
    the low-rank part is not counted. `grid` holds the settings to choose from, by key of the quantization section.

    Shapes: F (out, in), A (r, in), B (out, r). At step 0 W' = Q + s B A, nearer to W than q(W) is; on a dense base this
    is PiSSA.
    Trains: what the adapter trains. The base gives up s B A and rounds what is left.
    Source: Guo et al., "LQ-LoRA", 2023, arXiv 2311.12023, and the authors' code (rank 64, alpha 16, F from 10,000
    sequences, randomised SVD with 10 more columns than the rank).
    Departures: the best round is kept, where the authors' code keeps the one after it; the grid is one over the bits
    and costs are those of the first round by default (`plan_iterations`); rows or columns without any gradient count as
    the least of the others, not as zero; a matrix's bits include the one number that all its scales share.
    Advice: the authors' grid of 432: bits and scale_bits [2, 3, 4, 8], second_dtype [bfloat16, float16, float32],
    block_size [16, 32, 64], scales_per_block [16, 64, 256], all of `quantization: nf_blocks`.
    """

    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    config: Config

    class Config(MethodConfig):
        weighting: Literal["none", "fisher"] = Field(
            "none", description="fisher: errors weigh as much as the squared gradient of their weight"
        )
        batches: int = Field(256, gt=0, description="documents the squared gradients are summed over")
        iterations: int = Field(100, gt=0, description="rounds of SVD and rounding, at most")
        niter: SVDIterations = Field(
            2,
            description="subspace iterations of the randomised SVD, or exact; null: exact up to 2,048 rows or columns, "
            "16 iterations above",
        )
        budget: float | None = Field(
            None,
            gt=0,
            description="bits a weight, on average over the adapted layers; null: as quantization says",
        )
        grid: dict[str, Annotated[list[int | str | bool], Field(min_length=1)]] = Field(
            {"bits": [2, 3, 4, 8]},
            description="with a budget: quantization settings to choose from, key by key",
        )
        plan_iterations: int = Field(1, gt=0, description="rounds in which a layer's cost is estimated")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Settings to choose by layer that the storage does not have."""
            storage = recipe.declared("quantization")
            if self.budget is None or storage is None:
                return
            unknown = sorted(set(self.grid) - set(storage.config.model_fields))
            if unknown:
                message = (
                    f"{storage.name} has no setting {', '.join(unknown)} to choose by layer; write keys of the "
                    "quantization section, or another quantization that has "
                )
                yield Problem("init.grid", message + ("it" if len(unknown) == 1 else "them"))

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.needs = ("fisher",) if config.weighting == "fisher" else ()
        self.reads_weights = config.budget is not None

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        importance = self._importance(weight, signal)
        rounds = self.config.iterations
        factors, _ = decompose(weight, len(A), quantize, rounds, self.config.niter, importance)
        set_factors(A, B, factors, adapter.scaling)

    @torch.no_grad()
    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        if self.config.budget is None:
            return plan
        assert evidence is not None, "weights are read"
        ranks = {name: entry.rank for name, entry in plan.items() if entry.rank is not None}
        choices = [dict(zip(self.config.grid, v, strict=True)) for v in product(*self.config.grid.values())]
        rows: list[tuple[list[float], list[float]]] = []
        numbers = 0
        for done, (name, rank) in enumerate(ranks.items()):
            weight = evidence.weight(name)
            importance = self._importance(weight, evidence.signals.get(name, {}))
            with torch.random.fork_rng():
                seed_generators(zlib.crc32(name.encode()))
                rows.append(self._estimate(weight, rank, choices, evidence.quantize, importance))
            numbers += weight.numel()
            evidence.progress(done + 1, len(ranks))
        costs, sizes = (torch.tensor(part, dtype=torch.float64) for part in zip(*rows, strict=True))
        try:
            picked = assign(costs, sizes, self.config.budget * numbers)
        except ValueError as error:
            raise RecipeError(f"{self.config.budget} bits a weight: {error}", "init.budget") from None
        for name, j in zip(ranks, picked, strict=True):
            plan[name].quantization.update(choices[j])
        return plan

    def _estimate(
        self,
        weight: Tensor,
        rank: int,
        choices: list[dict[str, Any]],
        quantize: Quantizer,
        importance: Importance | None,
    ) -> tuple[list[float], list[float]]:
        """Squared error and bits of one layer under each choice."""
        costs, sizes = [], []
        rounds, niter = self.config.plan_iterations, self.config.niter
        first = _low_rank(weight.float(), rank, niter, importance)
        for settings in choices:
            store: Quantizer = partial(quantize, **settings)
            try:
                sizes.append(8.0 * store(weight).stored_bytes)
            except ValueError:
                message = (
                    f"the storage does not take {settings}; write keys and values of the quantization section"
                )
                raise RecipeError(message, "init.grid") from None
            costs.append(decompose(weight, rank, store, rounds, niter, importance, first)[1] ** 2)
        return costs, sizes

    def _importance(self, weight: Tensor, signal: dict[str, Tensor]) -> Importance | None:
        return None if self.config.weighting == "none" else importance_of(signal["fisher"].to(weight.device))


class Importance(NamedTuple):
    """Weights of errors: d1 (out, 1) and d2 (1, in) for the decomposition, sqrt(F) (out, in) for the error."""

    rows: Tensor
    columns: Tensor
    root: Tensor


def importance_of(fisher: Tensor) -> Importance:
    """From F (out, in) = summed squared gradients.

    Raises:
        ValueError: F is zero everywhere.
    """
    exact = fisher.float()
    if not exact.any():
        raise ValueError("the squared gradients are zero over the calibration batches; use more of them")
    sides = []
    for dim in (1, 0):
        side = exact.mean(dim=dim, keepdim=True).sqrt()
        sides.append(torch.where(side > 0, side, side[side > 0].min()))
    unit = (sides[0].max() * sides[1].max()).sqrt()  # one for both, which cancels; squared gradients are tiny
    return Importance(sides[0] / unit, sides[1] / unit, exact.sqrt())


def decompose(
    weight: Tensor,
    rank: int,
    quantize: Quantizer,
    iterations: int,
    niter: Iterations,
    importance: Importance | None = None,
    first: Factors | None = None,
) -> tuple[Factors, float]:
    """A (rank, in), B (out, rank) and the error that they and the rounded rest make of `weight`.

    Args:
        first: the factors of W itself, where they are known.
    """
    exact = weight.float()
    stored = torch.zeros_like(exact)
    kept, least = None, float("inf")
    for _ in range(iterations):
        fresh = kept is None and first is not None
        factors = first if fresh else _low_rank(exact - stored, rank, niter, importance)
        assert factors is not None
        stored = stored_without(weight, factors, quantize)
        missed = exact - factors[1] @ factors[0] - stored
        error = norm(missed if importance is None else importance.root * missed)
        if kept is not None and error >= least:
            break
        kept, least = factors, error
    assert kept is not None
    return kept, least


def _low_rank(matrix: Tensor, rank: int, niter: Iterations, importance: Importance | None) -> Factors:
    weights = None if importance is None else (importance.rows, importance.columns)
    return leading_factors(matrix, rank, niter, extra=OVERSAMPLING, weights=weights)
