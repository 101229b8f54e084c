"""Embeddings and gradients compared by their direction."""

from __future__ import annotations

from torch import Tensor

from lrft.ops.transport import Transport, sinkhorn
from lrft.registry.errors import DataError

TINY = 1e-12
TOLERATED = 0.05  # of the mass that a plan may have in the wrong place


def unit(features: Tensor) -> Tensor:
    """Every row at length 1, in float64; a row of nothing stays."""
    features = features.double()
    found: Tensor = features / features.norm(dim=1, keepdim=True).clamp_min(TINY)
    return found


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) cosines of the angles between rows."""
    return unit(a) @ unit(b).T


def transported(a: Tensor, b: Tensor, blur: float) -> Transport:
    """Entropic transport between rows of even mass, the cost being sqrt(2 - 2 cos), at the temperature `blur`^2.

    Raises:
        DataError: the iterations do not meet the marginals.
    """
    found = sinkhorn((2 - 2 * cosines(a, b)).clamp_min(0).sqrt(), blur**2)
    if not found.missed <= TOLERATED:
        raise DataError(
            f"--method: {found.missed:.0%} of the mass between {len(a)} rows and {len(b)} target rows is in the wrong "
            f"place after all iterations; raise its setting blur above {blur:g}"
        )
    return found
