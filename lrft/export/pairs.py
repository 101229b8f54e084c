"""The change of one layer as two factors: exactly where algebra allows, else the best of a rank or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.adapter import Additive, LowRank
from lrft.core.changed import Changed

ERROR = 0.05  # relative Frobenius error of a change that has no exact factors, where nothing was asked for
EXACT = 1e-5  # what float32 leaves of the singular values that are zero, beside the norm
SHARE = 4  # a change of at most 1 / SHARE of the full rank is kept whole where nothing was asked for


@dataclass(frozen=True)
class Pair:
    """The change of a weight (out, in) as scale * B A.

    Attributes:
        A: (r, in), and `B`: (out, r).
        exact: nothing of the change was left out; rounding to a file's precision comes after.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0
    exact: bool = True

    @property
    def rank(self) -> int:
        """How many rows A has."""
        return int(self.A.shape[0])

    def dense(self) -> Tensor:
        """Scale * B A, (out, in) float32."""
        return self.scale * (self.B.float() @ self.A.float())

    def to(self, dtype: torch.dtype) -> Pair:
        """The same factors in another precision, to nearest."""
        return Pair(self.A.to(dtype), self.B.to(dtype), self.scale, self.exact)

    def padded(self, rank: int) -> Pair:
        """The same change with its scale in B and rows of zeros up to `rank`, float32."""
        A, B = self.A.float(), self.scale * self.B.float()
        more = rank - self.rank
        return Pair(
            torch.cat([A, A.new_zeros(more, A.shape[1])]),
            torch.cat([B, B.new_zeros(B.shape[0], more)], dim=1),
            exact=self.exact,
        )


@dataclass(frozen=True)
class Wanted:
    """How much of a change is kept.

    Attributes:
        error: largest relative Frobenius error; the smallest rank within it is taken.
        rank: highest rank. With neither, exact factors stay whole, and what has none is cut at `ERROR`.
    """

    error: float | None = None
    rank: int | None = None

    def rank_for(self, S: Tensor) -> int:
        """How many of the singular values S, falling, are kept; at least one."""
        whole = _rank_within(S, EXACT)
        error = ERROR if self.error is None and self.rank is None else self.error
        if self.error is None and self.rank is None and whole <= max(len(S) // SHARE, 1):
            return whole
        rank = whole if error is None else _rank_within(S, error)
        return min(rank, self.rank or rank)


class SiteRecord(TypedDict):
    """What became of one layer's change. `error` is relative, in Frobenius norm, of the factors as they are written."""

    rank: int
    exact: bool
    error: float
    energy: float


@torch.no_grad()
def pair_of(module: Adapted, wanted: Wanted) -> Pair:
    """The change of an adapted layer since before any training, as factors in float32.

    Exact ones by the method's own algebra (a scale, a core between two bases, a start that is subtracted), else by a
    singular value decomposition of the change.
    """
    given = exact_pair(module)
    return nearest_pair(module.change() if given is None else given, wanted)


@torch.no_grad()
def nearest_pair(change: Pair | Tensor, wanted: Wanted) -> Pair:
    """A change (out, in) as the factors that are wanted: those that it is given by where these will do."""
    if isinstance(change, Pair) and change.rank <= _most(change, wanted):
        return change
    U, S, Vh = _decompose(change)
    rank = wanted.rank_for(S)
    root = S[:rank].sqrt()
    kept = float(S[:rank].square().sum())
    left = float(S[rank:].square().sum())
    exact = left <= EXACT**2 * (kept + left)
    return Pair(root[:, None] * Vh[:rank], U[:, :rank] * root, exact=exact)


def exact_pair(module: Adapted) -> Pair | None:
    """The factors that the method itself has, its start subtracted, what restarts added included; None without."""
    adapter, base = module.adapter, module.base
    if not isinstance(adapter, Additive) or "linear_delta" not in adapter.provides:
        return None
    if isinstance(adapter, LowRank) and module.start is None and not isinstance(base, Changed):
        branch = adapter.branch()
        A, B = branch.pair()
        return Pair(A.detach().float(), B.detach().float(), branch.scale)
    factors = adapter.factors(module.start)
    if factors is None:
        return None
    A, B = (factor.detach().float() for factor in factors)
    if isinstance(base, Changed):
        if base.A is None or base.B is None:
            return None
        A, B = torch.cat([A, base.A]), torch.cat([B, base.B], dim=1)
    return Pair(A, B)


@torch.no_grad()
def site_records(
    modules: Mapping[str, Adapted], written: Mapping[str, Pair]
) -> tuple[dict[str, SiteRecord], float]:
    """How far the factors as written are from the change, by site; and the relative error of all changes together."""
    records: dict[str, SiteRecord] = {}
    whole = missed = 0.0
    for name, module in modules.items():
        pair, change = written[name], module.change()
        norm, left = float(change.norm()), float((pair.dense().to(change.device) - change).norm())
        error = left / norm if norm else 0.0
        whole, missed = whole + norm**2, missed + left**2
        energy = max(1 - error**2, 0.0)
        records[name] = {"rank": pair.rank, "exact": pair.exact, "error": error, "energy": energy}
    return records, (missed / whole) ** 0.5 if whole else 0.0


def _most(given: Pair, wanted: Wanted) -> int:
    """The highest rank at which the method's own factors are taken as they are."""
    shorter = min(given.A.shape[1], given.B.shape[0])
    return 0 if wanted.error is not None else min(shorter, wanted.rank or shorter)


def _decompose(given: Pair | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k) and Vh (k, in) of the change; by way of the factors where they are smaller."""
    if isinstance(given, Tensor) or given.rank > min(given.A.shape[1], given.B.shape[0]):
        change = given if isinstance(given, Tensor) else given.dense()
        U, S, Vh = torch.linalg.svd(change.float(), full_matrices=False)
        return U, S, Vh
    Qb, Rb = torch.linalg.qr(given.scale * given.B)
    Qa, Ra = torch.linalg.qr(given.A.mT)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.mT)
    return Qb @ U, S, Vh @ Qa.mT


def _rank_within(S: Tensor, error: float) -> int:
    """The smallest rank, at least one, that leaves at most `error` of the norm of S."""
    squares = S.double().square()
    total = float(squares.sum())
    if not total:
        return 1
    left = squares.flip(0).cumsum(0).flip(0)  # of everything from an index on
    beyond = int((left > error**2 * total).sum())
    return max(beyond, 1)
