"""What a merge was asked for, over what the run's recipe says, and whether its adapter can be merged at all."""

from __future__ import annotations

from lrft.core.stages import SitePlan
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import NotMergeable
from lrft.training.chosen import open_chosen
from lrft.training.folder import RunFolder
from lrft.training.relied import own_recipe, plan_of


def check_planned(folder: RunFolder) -> None:
    """Refuse, by the plan of the run and before anything is loaded, an adapter that no dense weight can say.

    Raises:
        NotMergeable: names the first site.
    """
    section = own_recipe(folder.path).recipe.adapter
    if section is None:
        return
    with open_chosen(folder) as saved:
        planned = plan_of(saved, folder)
    for record in planned.values():
        entry = SitePlan.of(record, type(section))
        reason = (
            ""
            if entry.config is None
            else ADAPTERS.get(section.method).why_not_merged(entry.config, entry.site)
        )
        if reason:
            raise NotMergeable(reason)


def with_options(recipe: Recipe, onto: str | None, rounding: str | None, dtype: str | None) -> Recipe:
    """The recipe with what the command was asked for, and every default of `export` that depends on it."""
    section = recipe.export
    precision = dtype or section.dtype or recipe.model.dtype
    chosen = None if precision == "float32" else rounding or section.rounding or "stochastic"
    update = {"onto": onto or section.onto, "dtype": precision, "rounding": chosen}
    return recipe.model_copy(update={"export": section.model_copy(update=update)})
