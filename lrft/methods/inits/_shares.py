"""A budget of places over all sites: in proportion to their sizes before anything is known, by scores after."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lrft.core.entries import rounded
from lrft.core.stages import Plan, SitePlan
from lrft.ops.entries import shares
from lrft.registry.errors import RecipeError


def sizes(plan: Plan) -> dict[str, int]:
    """Entries of every adapted weight."""
    sites = {name: entry.site for name, entry in plan.items() if entry.config is not None}
    return {name: site.in_features * site.out_features for name, site in sites.items()}


def asked(
    plan: Plan, setting: str, totals: Mapping[str, int], whole: Callable[[float], int] = rounded
) -> int:
    """The places that the adapters of all sites ask for together.

    Args:
        setting: how many, where a site says it; elsewhere its share of its total counts, and of the sum of all such
            shares `whole` makes a number: rounded site by site they would be more, or fewer.
    """
    said, of = 0, dict[float, int]()  # share -> places that it is of: one product for each share
    for name, total in totals.items():
        if many := plan[name].setting(setting):
            said += many
        else:
            share = plan[name].setting("share")
            of[share] = of.get(share, 0) + total
    return said + (whole(sum(share * total for share, total in of.items())) if of else 0)


def in_proportion(plan: Plan, setting: str, totals: Mapping[str, int], wanted: int) -> Plan:
    """The plan with `wanted` places in all, each site's share by its total, and no adapter where that is none."""
    found, given, passed, total = {}, 0, 0, sum(totals.values())
    for name, size in totals.items():
        passed += size
        upto = wanted * passed // total
        found[name], given = upto - given, upto
    return _with(plan, setting, found)


def dealt(plan: Plan, setting: str, scores: Callable[[str], Tensor], wanted: int) -> Plan:
    """The plan with `wanted` places in all at the sites that have the largest scores, and no adapter elsewhere.

    Args:
        scores: of all places of a site.

    Raises:
        RecipeError: a score is no number.
    """
    names = [name for name, entry in plan.items() if entry.config is not None]
    try:
        return _with(plan, setting, shares(names, scores, wanted))
    except ValueError as error:
        raise RecipeError(str(error), "init") from None


def check_wanted(wanted: int, total: int, key: str) -> int:
    """So many places, if there are.

    Raises:
        RecipeError: at `key`: there are fewer.
    """
    if wanted > total:
        raise RecipeError(f"{wanted:,} are more than the {total:,} of all adapted layers; write fewer", key)
    return wanted


def _with(plan: Plan, setting: str, counts: Mapping[str, int]) -> Plan:
    """The plan with as many places at each site, and no adapter where there are none."""
    return {
        name: (entry.changed(**{setting: counts[name]}) if counts[name] else SitePlan(entry.site))
        if name in counts
        else entry
        for name, entry in plan.items()
    }
