"""The sites that an analysis of factors can look at."""

from __future__ import annotations

from lrft.core.adapted import Adapted
from lrft.core.run import Run
from lrft.registry.errors import RecipeError


def with_factors(run: Run, analysis: str) -> list[Adapted]:
    """Sites whose own adapter holds A and B, which is for the site to say: a recipe may give some of them another form.

    Raises:
        RecipeError: there is none.
    """
    found = [module for _, module in run.adapted() if "low_rank" in module.adapter.provides]
    if not found:
        raise RecipeError(
            f"{analysis} looks at factors A and B, and no layer has any; leave it out, or let some layers train theirs",
            "analyse",
        )
    return found
