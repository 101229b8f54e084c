"""The spectrum of one change and where it lies beside the base weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.in_layer import in_layer
from lrft.lab.spectra.record import Angles, Intruders, SiteRecord
from lrft.ops.spectrum import (
    Triples,
    decompose,
    decompose_product,
    energy_rank,
    entropy_rank,
    likeness,
    numerical_rank,
    principal_angles,
    stable_rank,
)
from lrft.registry.errors import NumericalError

KEPT = 64  # singular values of a site that a record holds
DIGITS = 6


@dataclass(frozen=True)
class SiteChange:
    """What training made of one linear map, formed when it is asked for.

    Attributes:
        shape: (out, in).
        allocated: rank components of the adapter, or None.
        factors: A (k, in) and B (out, k) with dW = B A, scaling included; None where it has no low rank.
        dense: gives dW (out, in) float32.
        before: gives W (out, in) float32; None where the base is not at hand, or is nothing.
    """

    site: str
    shape: tuple[int, int]
    allocated: int | None
    factors: Factors | None
    dense: Callable[[], Tensor]
    before: Callable[[], Tensor] | None


@dataclass(frozen=True)
class Look:
    """How closely to look.

    Attributes:
        top: leading directions that angles and intruders are about.
        below: largest likeness of an intruder.
        quick: leave out what decomposes base weights.
    """

    top: int = 10
    below: float = 0.5
    quick: bool = False


@torch.no_grad()
def measure(change: SiteChange, look: Look) -> SiteRecord:
    """The record of one site.

    With W = U S V^T the base weight, dW = P D Q^T the change, W + dW = X T Y^T, and r = min(`top`, rank of dW):

        output angles: between the spans of P[:, :r] and U[:, :r];  input: of Q[:, :r] and V[:, :r]
        overlap = |P_r^T U_r|_F^2 / r, the subspace similarity of Hu et al., "LoRA", 2021, arXiv 2106.09685, section 7
        an intruder: x_j, j <= `top`, with max over all i of |<x_j, u_i>| < `below`

    An intruder dimension is that of Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024,
    arXiv 2410.21228, definition 1: a leading singular vector of the tuned weight whose cosine similarity to every
    singular vector of the pretrained one is below a threshold; its top 10 and 0.5 are those of the authors' code. Of
    a matrix with more rows than columns U does not span the outputs; all min(out, in) vectors of it count.

    Raises:
        NumericalError: the change is not finite.
    """
    triples = _triples(change)
    values = triples.S
    rank = numerical_rank(values, change.shape)
    weight = None if change.before is None else change.before().to(values.device)
    norm = float(values.square().sum().sqrt())
    weight_norm = None if weight is None else float(weight.norm())
    found = in_layer(change.site)
    output = input = intruders = None
    if weight is not None and not look.quick:
        output, input, intruders = _beside(change, triples, rank, weight, look)
    return {
        "site": change.site,
        "layer": found.number if found else None,
        "module": found.rest if found else change.site,
        "shape": list(change.shape),
        "allocated": change.allocated,
        "rank": rank,
        "rank_99": energy_rank(values),
        "rank_entropy": _short(entropy_rank(values)),
        "rank_stable": _short(stable_rank(values)),
        "norm": _short(norm),
        "weight_norm": None if weight_norm is None else _short(weight_norm),
        "relative": _short(norm / weight_norm) if weight_norm else None,
        "values": _list(values[: min(rank, KEPT)]),
        "output": output,
        "input": input,
        "intruders": intruders,
    }


def _triples(change: SiteChange) -> Triples:
    """Of the thin product where it is one; a product as thick as the matrix is formed."""
    if change.factors is not None and change.factors[0].shape[0] < min(change.shape):
        _check_finite(change.site, *change.factors)
        return decompose_product(*change.factors)
    dense = change.dense()
    _check_finite(change.site, dense)
    return decompose(dense)


def _check_finite(site: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise NumericalError(f"{site}: the change of the weight is not finite, so it has no spectrum")


def _beside(
    change: SiteChange, triples: Triples, rank: int, weight: Tensor, look: Look
) -> tuple[Angles | None, Angles | None, Intruders]:
    """What takes two decompositions of a dense matrix: angles of the outputs and of the inputs, and the intruders."""
    old = decompose(weight)
    new = decompose(weight + change.dense().to(weight))
    cosines = likeness(old.U, new.U[:, : look.top]).clamp(max=1)
    intruders: Intruders = {"count": int((cosines < look.below).sum()), "likeness": _list(cosines)}
    r = min(look.top, rank)
    if not r:
        return None, None, intruders
    return _angles(triples.U[:, :r], old.U[:, :r]), _angles(triples.V[:, :r], old.V[:, :r]), intruders


def _angles(P: Tensor, Q: Tensor) -> Angles:
    degrees = principal_angles(P, Q.to(P.device))
    overlap = float(degrees.deg2rad().cos().square().mean())
    return {
        "degrees": [round(float(angle), 2) for angle in degrees],
        "overlap": _short(overlap),
        "chance": _short(Q.shape[1] / Q.shape[0]),
    }


def _list(values: Tensor) -> list[float]:
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
