"""Rounding with error feedback: what rounding one column does to the layer's output, later columns take back.

H = X^T X + lambda I (in, in), lambda = 1 % of the mean diagonal, X the layer's inputs; U the upper Cholesky factor of
H^-1. Columns in the order of falling diagonal: q_k = nearest(w_k), then w_j -= (w_k - q_k) U_kj / U_kk for j > k.
Source: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323, algorithm 1. Departure: the grid is any whose
scales are settled before; that of a floating point format has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.params import Site
from lrft.core.stages import Statistic, Tokens
from lrft.export.rounding import check_finite, check_range
from lrft.model.calibrate import calibrate
from lrft.model.causal_lm import CausalLM
from lrft.ops.linalg import truncated_svd

Nearest: TypeAlias = Callable[[int, Tensor], Tensor]
"""(index of a column, the column (out,) float32) -> the nearest one of the grid."""

DAMPING = 0.01
BLOCK = 128  # columns whose effect on all the later ones is one product
MEMORY = 2 << 30  # bytes of second moments held at a time; layers beyond it cost another pass over the rows


class Moment(Statistic):
    """X^T X (in, in) over the real tokens of all batches, float32; empty where no token reached the layer."""

    backward = False
    of_input = True

    def __init__(self) -> None:
        self.total: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        rows = x[tokens.real].float()
        if not rows.isfinite().all():
            raise ValueError("its inputs are not finite on the calibration rows")
        moment = rows.mT @ rows
        self.total = moment if self.total is None else self.total.add_(moment)

    def result(self) -> Tensor:
        return torch.empty(0) if self.total is None else self.total


def moments(
    model: CausalLM, layers: list[Site], batches: Iterable[Batch], objective: Objective
) -> dict[str, Tensor]:
    """X^T X of each layer over the batches, by path; layers that no token reached are left out.

    Layers that read the same tensor get the same matrix.
    """
    sites = {site.name: site for site in layers}

    def make(site: str, name: str) -> Statistic:
        return Moment()

    found = calibrate(model, sites, batches, objective, make, ["moment"])
    return {name: one["moment"] for name, one in found.items() if one["moment"].any()}


def groups(layers: list[Site], memory: int = MEMORY) -> list[list[Site]]:
    """The layers in order, cut so that the second moments of a group fit into `memory` bytes."""
    found: list[list[Site]] = []
    held = memory
    for site in layers:
        size = 4 * site.in_features**2
        if held + size > memory:
            found.append([])
            held = 0
        found[-1].append(site)
        held += size
    return found


class Feedback:
    """Rounds the layers that read one input; the decomposition of its moment is made once.

    Args:
        moment: (in, in), X^T X.

    Attributes:
        order: of the columns.
        U: upper factor of H^-1 = U^T U, in that order.
    """

    def __init__(self, moment: Tensor) -> None:
        diagonal = moment.diagonal()
        self.order = diagonal.argsort(descending=True, stable=True)
        H = moment[self.order][:, self.order].double()
        H.diagonal().add_(DAMPING * float(diagonal.double().mean()))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
        self.U = torch.linalg.cholesky(inverse, upper=True).float()

    @property
    def cost(self) -> Tensor:
        """(in,) what a squared rounding error of 1 in a column costs in the output, later columns at their best."""
        found = torch.empty(len(self.order))
        found[self.order] = self.U.diagonal().square().reciprocal()
        return found

    def __call__(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """(out, in) in float32 -> (out, in) in `dtype`.

        Raises:
            NumericalError: a value is not finite, or larger than `dtype` can say.
        """
        check_finite(name, weight)
        found = self.round(weight, lambda k, column: column.to(dtype).float()).to(dtype)
        check_range(name, weight, found)
        return found

    def round(self, weight: Tensor, nearest: Nearest) -> Tensor:
        """(out, in) -> (out, in) float32 on the grid of `nearest`."""
        W = (
            weight.detach().float().cpu()[:, self.order].mT.contiguous()
        )  # (in, out): a column is one piece of memory
        Q = torch.empty_like(W)
        for start in range(0, W.shape[0], BLOCK):
            self._block(W, Q, nearest, start, min(start + BLOCK, W.shape[0]))
        found = torch.empty_like(Q)
        found[self.order] = Q
        return found.mT.contiguous()

    def remainder(self, missing: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) whose product leaves the least of `missing` (out, in) in the output.

        |(D - B A) X^T|^2 = |(D - B A) U^-1|^2, so they are the leading part of the SVD of D U^-1, times U.
        """
        D = missing[:, self.order]
        whitened = torch.linalg.solve_triangular(self.U, D, upper=True, left=False)
        with torch.random.fork_rng(devices=[]):  # a large layer's is a randomised one
            torch.manual_seed(0)
            P, S, V = truncated_svd(whitened, min(rank, *D.shape), niter=None)
        root = S.sqrt()
        A = torch.empty(len(root), D.shape[1])
        A[:, self.order] = (root[:, None] * V) @ self.U
        return A, P * root

    def _block(self, W: Tensor, Q: Tensor, nearest: Nearest, start: int, end: int) -> None:
        """Round rows `start` to `end` of W into Q and push their errors onto the rows after them."""
        errors = torch.empty_like(W[start:end])
        places = self.order[start:end].tolist()
        for k in range(start, end):
            Q[k] = nearest(places[k - start], W[k])
            errors[k - start] = (W[k] - Q[k]) / self.U[k, k]
            W[k + 1 : end].addr_(self.U[k, k + 1 : end], errors[k - start], alpha=-1)
        W[end:].addmm_(self.U[start:end, end:].mT, errors, alpha=-1)


def rounders(found: dict[str, Tensor]) -> dict[str, Feedback]:
    """Path -> `Feedback`, one for all layers that share a moment."""
    made = {id(moment): moment for moment in found.values()}
    ready = {key: Feedback(moment) for key, moment in made.items()}
    return {name: ready[id(moment)] for name, moment in found.items()}
