"""`lrft reproduce --dry-run`: what tables would run, what trains there and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrft.api.planning.plan import memory_bytes
from lrft.build.measure import measure
from lrft.lab.compare.match import match
from lrft.lab.models import Models
from lrft.lab.runs.planned import TUNING_SEED
from lrft.lab.tables.exact.load import load_table
from lrft.lab.tables.full.results import size_full
from lrft.lab.tables.library import EXACT, FULL, SCALED, Entry, choose
from lrft.lab.tables.listing import stated_cost
from lrft.lab.tables.record import Sized, SizedRow, Sizes
from lrft.lab.tables.scaled.table import load_scaled, scaled_arms
from lrft.recipe.schema import Recipe


def sizes(
    names: list[str],
    tier: str | None = None,
    seeds: Sequence[int] | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Sizes]:
    """What each of the tables would run: name, tier, cost, runs, and by row or arm what trains and its memory.

    Raises:
        UsageError, RecipeError: what running them would raise before anything is counted or trained.
    """
    models = Models(trust_remote_code)
    for entry in choose(names, tier):
        what = {EXACT: _counts, SCALED: _arms, FULL: _rows}[entry.tier](entry, seeds, models)
        yield {"name": entry.name, "tier": entry.tier, "cost": stated_cost(entry, entry.plain()), **what}


def _counts(entry: Entry, seeds: Sequence[int] | None, models: Models) -> Sized:
    """A table of the exact tier trains nothing: running it is what counts."""
    rows = load_table(entry).table.rows
    return {"runs": f"{len(rows)} rows are counted, nothing trains", "memory": "none", "rows": []}


def _arms(entry: Entry, seeds: Sequence[int] | None, models: Models) -> Sized:
    table = load_scaled(entry.path)
    arms = scaled_arms(table, entry.path)
    if table.match != "steps":
        arms, _ = match(arms, table.match, models)  # the ranks that will train
    rates, number = len(table.lr_grid), table.seeds if seeds is None else len(seeds)
    tuning = len(arms) * rates if rates > 1 else 0
    how = f", {tuning} of them to choose among {rates} rates on seed {TUNING_SEED}" if tuning else ""
    return {
        "memory": "memory, activations estimated",
        "runs": f"{tuning + len(arms) * number} runs{how}, seeds for the verdict: {number}",
        "rows": [_size_recipe(arm.label, arm.recipe, models) for arm in arms],
    }


def _rows(entry: Entry, seeds: Sequence[int] | None, models: Models) -> Sized:
    found = size_full(entry.path, models)
    rows: list[SizedRow] = [
        {
            "label": row["label"],
            "trainable": row["trainable"],
            "memory_bytes": row["memory_bytes"],
            "state": row["state"],
        }
        for row in found["rows"]
    ]
    return {"runs": found["runs"], "memory": "memory without activations", "rows": rows}


def _size_recipe(label: str, recipe: Recipe, models: Models) -> SizedRow:
    model = models.get(recipe.model)
    counted = measure(recipe, model)
    total = memory_bytes(recipe, model, counted)["total_estimated"]
    return {"label": label, "trainable": counted["trainable"], "memory_bytes": total}
