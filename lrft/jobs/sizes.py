"""`lrft reproduce --dry-run`: what tables would run, what trains there and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from lrft.assemble.measure import measure
from lrft.compare.full import size_full
from lrft.compare.match import match
from lrft.compare.plan import TUNING_SEED
from lrft.compare.scaled import load_scaled, scaled_arms
from lrft.jobs.plan import memory_bytes
from lrft.jobs.say import show_table
from lrft.recipe.schema import Recipe
from lrft.tables.count import Models
from lrft.tables.library import EXACT, FULL, SCALED, Entry, choose
from lrft.tables.listing import stated_cost
from lrft.tables.load import load_table

GIB = 2**30


def sizes(
    names: list[str], tier: str | None = None, seeds: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """What each of the tables would run: name, tier, cost, runs, and by row or arm what trains and its memory.

    Raises:
        UsageError, RecipeError: what running them would raise before anything is counted or trained.
    """
    for entry in choose(names, tier):
        what = {EXACT: _counts, SCALED: _arms, FULL: _rows}[entry.tier](entry, seeds)
        yield {"name": entry.name, "tier": entry.tier, "cost": stated_cost(entry, entry.plain()), **what}


def show_sizes(found: Iterable[dict[str, Any]]) -> None:
    """The sizes as tables on standard output, one as soon as it is known."""
    for one in found:
        print(f"{one['name']} ({one['tier']} tier): {one['runs']}; cost: {one['cost']}")
        table = Table("row", "trainable", one["memory"])
        for row in one["rows"]:
            counted = row.get("state", "") if row["trainable"] is None else f"{row['trainable']:,}"
            memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / GIB:,.2f} GiB"
            table.add_row(row["label"], counted, memory)
        if one["rows"]:
            show_table(table)


def _counts(entry: Entry, seeds: Sequence[int] | None) -> dict[str, Any]:
    """A table of the exact tier trains nothing: running it is what counts."""
    rows = load_table(entry).table.rows
    return {"runs": f"{len(rows)} rows are counted, nothing trains", "memory": "none", "rows": []}


def _arms(entry: Entry, seeds: Sequence[int] | None) -> dict[str, Any]:
    table = load_scaled(entry.path)
    arms, models = scaled_arms(table, entry.path), Models()
    if table.match != "steps":
        arms, _ = match(arms, table.match)  # the ranks that will train
    rates, number = len(table.lr_grid), table.seeds if seeds is None else len(seeds)
    tuning = len(arms) * rates if rates > 1 else 0
    how = f", {tuning} of them to choose among {rates} rates on seed {TUNING_SEED}" if tuning else ""
    return {
        "memory": "memory, activations estimated",
        "runs": f"{tuning + len(arms) * number} runs{how}, seeds for the verdict: {number}",
        "rows": [_sized(arm.label, arm.recipe, models) for arm in arms],
    }


def _rows(entry: Entry, seeds: Sequence[int] | None) -> dict[str, Any]:
    found = size_full(entry.path)
    return {"runs": found["runs"], "memory": "memory without activations", "rows": found["rows"]}


def _sized(label: str, recipe: Recipe, models: Models) -> dict[str, Any]:
    model = models.get(recipe.model)
    counted = measure(recipe, model)
    total = memory_bytes(recipe, model, counted)["total_estimated"]
    return {"label": label, "trainable": counted["trainable"], "memory_bytes": total}
