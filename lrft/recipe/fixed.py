"""Settings that a kind of training leaves no choice of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView


def check_fixed(settings: RecipeView, fixed: Mapping[str, tuple[object, str]]) -> Iterator[Problem]:
    """A problem for every key that has another value than its own; what is null or empty asks for nothing.

    Args:
        fixed: key -> the one value, and why.
    """
    for key, (value, why) in fixed.items():
        if settings[key] != value and settings[key] not in (None, []):
            yield Problem(key, why)
