"""The sites that an adapter goes on: those that its patterns name, less those left out by pattern or by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lrft.core.adapter import Adapter
from lrft.core.in_layer import in_layer
from lrft.core.params import Site
from lrft.model.sites import TargetRow, choose, matches
from lrft.registry.config import AdapterConfig
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError


def choose_sites(
    sites: dict[str, Site],
    config: AdapterConfig,
    total: int,
    direct: Collection[str] = (),
    aside: Collection[str] = (),
) -> tuple[dict[str, Site], list[TargetRow]]:
    """The sites that an adapter goes on, in model order, and what each pattern of `targets` hit of them.

    Args:
        total: numbers in all matrices, which shares are of.
        direct: linear layers that nothing can stand in for.
        aside: sites that text never runs through.

    Raises:
        RecipeError: a pattern matches nothing, a layer is not there, or no site is left.
    """
    targeted, table = choose(sites, config.targets, total, direct, aside=aside)
    left_out = _excluded(targeted, config.exclude) | _in_other_layers(targeted, config.layers)
    if not left_out:
        return targeted, table
    if len(left_out) == len(targeted):
        key = "adapter.exclude" if config.layers is None else "adapter.layers"
        raise RecipeError("leaves none of the layers that adapter.targets names; leave fewer out", key)
    return choose(sites, config.targets, total, direct, left_out)


def check_experts(sites: dict[str, Site], adapter: type[Adapter]) -> None:
    """Refuse matrices of experts to an adapter that is more than a change of each, or asks where in a batch tokens are.

    Raises:
        RecipeError: names the first.
    """
    expert = next((name for name, site in sites.items() if site.kind == "expert"), None)
    if expert is not None and ("mergeable" not in adapter.provides or adapter.by_position):
        raise RecipeError(
            f"{adapter.name} is more than a change of single matrices, so experts ({expert}) cannot have it; name "
            "other layers, or write adapter.exclude: ['experts.*']",
            "adapter.targets",
        )


def _excluded(targeted: Collection[str], patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in targeted if matches(name, pattern)}
        if not hits:
            parts = {name.rpartition(".")[2] for name in targeted} | (
                {*targeted} if "." in pattern else set()
            )
            raise RecipeError(
                f"pattern {pattern!r} matches none of the layers that adapter.targets names"
                f"{did_you_mean(pattern, parts)}",
                "adapter.exclude",
            )
        found |= hits
    return found


def _in_other_layers(targeted: Collection[str], layers: int | str | list[int | str] | None) -> set[str]:
    """The targeted sites that are in none of the layers named; one outside all layers is in none."""
    if layers is None:
        return set()
    numbers = {name: found.number for name in targeted if (found := in_layer(name))}
    kept: set[int] = set()
    for written in layers if isinstance(layers, list) else [layers]:
        first, dash, end = str(written).partition("-")
        last = max(numbers.values(), default=0) if dash and not end else int(end or first)
        hits = {number for number in numbers.values() if int(first) <= number <= last}
        if not hits or last > max(numbers.values()) or int(first) > last:
            there = f"{min(numbers.values())} to {max(numbers.values())}" if numbers else "no number"
            raise RecipeError(
                f"{written} names layers that adapter.targets has no site in; those it has sites in are {there}",
                "adapter.layers",
            )
        kept |= hits
    return {name for name in targeted if numbers.get(name) not in kept}
