"""Groups of consecutive weights of a row that share a step of their rounding."""

from __future__ import annotations

import math

from lrft.core.params import Site


def check_groups(size: int, site: Site) -> None:
    """Refuse groups that do not end where rows do.

    Raises:
        ValueError: with a size that would.
    """
    if site.in_features % size:
        fitting = math.gcd(size, site.in_features)
        raise ValueError(
            f"group_size {size} does not divide the {site.in_features} inputs; use a divisor of them, such as {fitting}"
        )
