"""Shell completion of recipe names, and of the methods that a command chooses."""

from __future__ import annotations

from collections.abc import Callable


def recipe_names(incomplete: str) -> list[str]:
    """Packaged recipes that begin with what was typed."""
    from lrft.recipe.library import names

    return [name for name in names() if name.startswith(incomplete)]


def methods_of(axis: str) -> Callable[[str], list[str]]:
    """Completion of an axis of `lrft methods ls`: its methods that begin with what was typed."""

    def complete(incomplete: str) -> list[str]:
        from lrft.recipe.catalog import CATALOG

        return [name for name in CATALOG[axis].names() if name.startswith(incomplete)]

    return complete
