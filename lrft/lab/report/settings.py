"""Recipes with the origin of each value, what differs between runs, and what they ran on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lrft.lab.report.read import RunData
from lrft.lab.report.weights import Table
from lrft.recipe.resolved import ABSENT, compare, flat
from lrft.recipe.tree import dotted
from lrft.registry.json import Json


def recipe_of(run: RunData) -> Table:
    """Key, value and origin of every value; of a run that did not keep origins, the line of its own recipe.yaml."""
    kept = run.record.get("origins")
    values = {dotted(keys): value for keys, value in flat(run.recipe.recipe).items()}
    rows = [
        (key, shown(value), run.recipe.origins[key] if kept is None else str(kept.get(key, "default")))
        for key, value in values.items()
    ]
    return Table(("key", "value", "origin"), rows)


def differences(runs: Sequence[RunData]) -> Table | None:
    """Keys in which the recipes differ, a column for each run; None where there is one run."""
    if len(runs) < 2:
        return None
    first, *others = (run.recipe.recipe for run in runs)
    keys = dict.fromkeys(key for other in others for key, _, _ in compare(first, other))
    values = [{dotted(keys): value for keys, value in flat(run.recipe.recipe).items()} for run in runs]
    rows = [(key, *(shown(found.get(key, ABSENT)) for found in values)) for key in keys]
    return Table(("key", *(run.name for run in runs)), rows)


def machines(runs: Sequence[RunData]) -> Table:
    """Versions and hardware, a column for each run."""
    found = [
        {
            **{f"version of {name}": value for name, value in run.record.get("versions", {}).items()},
            **run.record.get("hardware", {}),
            "git commit": run.record.get("git"),
            "processes": run.record.get("processes"),
            "attention": run.record.get("attention"),
            "recipe hash": run.record.get("recipe_hash"),
            "fingerprint of the base": run.record.get("base_fingerprint"),
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for one in found for key in one)
    rows = [(key, *(_known(one.get(key)) for one in found)) for key in keys]
    return Table(("", *(run.name for run in runs)), rows)


def shown(value: Json) -> str:
    """A value on one line, text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _known(value: object) -> str:
    return "-" if value is None else str(value)
