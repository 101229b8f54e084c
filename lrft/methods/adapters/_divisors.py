"""Sizes that have to divide both sides of a weight."""

from __future__ import annotations

import math

from lrft.core.params import Site


def check_divides(name: str, size: int, site: Site) -> None:
    """Refuse a size that does not divide inputs and outputs; the nearest that does is told.

    Raises:
        ValueError: names the setting.
    """
    width, out = site.in_features, site.out_features
    if width % size or out % size:
        common = math.gcd(width, out)
        best = min((d for d in range(1, common + 1) if common % d == 0), key=lambda d: abs(d - size))
        raise ValueError(f"{name} {size} does not divide {width} inputs and {out} outputs; use {best}")
