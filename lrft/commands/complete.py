"""Shell completion of recipe names."""

from __future__ import annotations


def recipe_names(incomplete: str) -> list[str]:
    """Packaged recipes that begin with what was typed."""
    from lrft.recipe.library import names

    return [name for name in names() if name.startswith(incomplete)]
