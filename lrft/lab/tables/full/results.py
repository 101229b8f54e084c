"""Tables of the full tier: sized by formula, run on the real models, ours beside the published results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lrft.lab.models import Models
from lrft.lab.runs.executor import Executor
from lrft.lab.runs.outcome import set_ups_of
from lrft.lab.tables.full.report import full_markdown as full_markdown
from lrft.lab.tables.full.runs import Runs, finish, planned, read
from lrft.lab.tables.full.table import FullCell, FullColumn, FullRow, FullTable, counted_recipe
from lrft.lab.tables.full.table import load_full as load_full
from lrft.lab.tables.record import ColumnRecord, FullRecord, ResultRecord, RowRecord
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError

WITHIN, MISSED, CONFLICT, DIVERGING = "within tolerance", "missed", "conflict", "diverged"
NOT_RUN, NO_TASK = "not run", "no such benchmark in lrft"
ABSENT, NO_RECIPE = "method not in lrft yet", "no recipe"
SIZED, NO_CONFIG = "sized", "not sized: no configuration is packaged"


def size_full(path: Path, models: Models | None = None) -> FullRecord:
    """What each row trains and holds in memory, by formula: no weights, no data, no hub.

    Raises:
        RecipeError: the table or the recipe of a row is not valid.
    """
    table = load_full(path)
    models = models or Models()
    rows = [_size_row(table, row, path, models) for row in table.rows]
    return _record(path, table, rows, {}, seeds=None)


def run_full(
    path: Path,
    out: Path,
    *,
    seeds: int | Sequence[int] | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    rows: Sequence[str] | None = None,
    cluster: Executor | None = None,
    trust_remote_code: bool = False,
) -> FullRecord:
    """Train and score the rows of a table in `out`, and set the results beside the published ones.

    What is finished there is kept. Nothing is trained before every recipe, and every file it names, was found.

    Args:
        seeds: how many, or which; by default the one that each recipe states.
        overrides: of all rows, after everything in the table.
        rows: labels of the rows to run; by default all that have a recipe.
        cluster: where runs are trained and scored; None for processes of this machine.
        trust_remote_code: let code run that comes with a base model.

    Raises:
        RecipeError: the table or the recipe of a row is not valid.
        UsageError: no row has such a label.
        LrftError, Interrupted: a run failed, or was asked to stop; the same call goes on.
    """
    began, table = time.monotonic(), load_full(path)
    chosen = list(range(seeds)) if isinstance(seeds, int) else None if seeds is None else list(seeds)
    found = {row.label: Runs() for row in table.rows}
    for row in _wanted(table, rows):
        found[row.label].runs = planned(table, row, path, out, chosen, overrides, trust_remote_code)
    finish([run for each in found.values() for run in each.runs], jobs, cluster)
    for row in table.rows:
        read(found[row.label], table, row)
    models = Models(trust_remote_code)
    sized = [_size_row(table, row, path, models) for row in table.rows]
    record = _record(path, table, sized, found, chosen)
    return {**record, "overrides": list(overrides), "seconds": round(time.monotonic() - began, 1)}


def judge_result(cell: FullCell, column: FullColumn, ours: float) -> str:
    """What our result says of the published one."""
    allowed = column.tolerance if cell.tolerance is None else cell.tolerance
    assert allowed is not None, "a measured column has a tolerance"
    if abs(ours - cell.published) <= allowed + 1e-9:
        return WITHIN
    return CONFLICT if cell.conflict else MISSED


def _size_row(table: FullTable, row: FullRow, path: Path, models: Models) -> RowRecord:
    """One row of the record: counts and bytes, or why there are none."""
    loaded = counted_recipe(table, row, path)
    facts: RowRecord = {
        "label": row.label,
        "recipe": row.recipe,
        "overrides": [*table.overrides, *row.overrides],
        "steps": row.steps,
        "tokens": row.tokens,
        "state": NO_RECIPE if row.recipe is None else ABSENT,
        "trainable": None,
        "trainable_percent": None,
        "memory_bytes": None,
        "memory": {},
    }
    if loaded is None:
        return facts
    facts["steps"] = row.steps or loaded.recipe.train.max_steps
    section = loaded.recipe.model
    if not Path(section.name).is_dir():
        return {**facts, "state": NO_CONFIG}
    counted = models.weigh(loaded.recipe)
    memory = {
        "weights": counted["weight_bytes"],
        "adapter": counted["trainable_bytes"],
        "gradients": counted["gradient_bytes"],
        "optimizer_state": counted["optimizer_bytes"],
    }
    return {
        **facts,
        "state": SIZED,
        "trainable": counted["trainable"],
        "trainable_percent": counted["trainable_percent"],
        "memory_bytes": sum(memory.values()),
        "memory": memory,
    }


def _wanted(table: FullTable, labels: Sequence[str] | None) -> list[FullRow]:
    known = [row.label for row in table.rows]
    for label in labels or ():
        if label not in known:
            raise UsageError(f"no row {label!r}{did_you_mean(label, known)}")
    return [row for row in table.rows if labels is None or row.label in labels]


def _number(row: FullRow, name: str, column: FullColumn, state: str, found: Runs | None) -> ResultRecord:
    """One published result with ours."""
    cell, found = row.cells[name], found or Runs()
    values = (
        list(zip(*(found.values[metric] for metric in column.metrics), strict=True)) if found.values else []
    )
    ours: list[float | None] = [
        None if None in of_seed else column.scale * fmean(v for v in of_seed if v is not None)
        for of_seed in values
    ]
    finite = [value for value in ours if value is not None]
    mean = fmean(finite) if finite and len(finite) == len(ours) else None
    if state in (NO_RECIPE, ABSENT):
        said = state
    elif not column.metrics:
        said = NO_TASK
    elif mean is None:
        said = DIVERGING if ours else NOT_RUN
    else:
        said = judge_result(cell, column, mean)
    return {
        "row": row.label,
        "column": name,
        "published": cell.published,
        "provenance": cell.provenance or column.provenance,
        "conflict": cell.conflict,
        "ours": mean,
        "values": ours,
        "scored_rows": sum(found.scored.get(metric, 0) for metric in column.metrics),
        "difference": None if mean is None else mean - cell.published,
        "verdict": said,
    }


def _record(
    path: Path,
    table: FullTable,
    rows: list[RowRecord],
    found: dict[str, Runs],
    seeds: Sequence[int] | None,
) -> FullRecord:
    """The table as plain values, what NAME.json holds."""
    numbers = [
        _number(row, name, table.columns[name], facts["state"], found.get(row.label))
        for row, facts in zip(table.rows, rows, strict=True)
        for name in row.cells
    ]
    able = sum(facts["state"] in (SIZED, NO_CONFIG) for facts in rows)
    columns: dict[str, ColumnRecord] = table.model_dump(mode="json", include={"columns"})["columns"]
    return {
        "name": path.stem,
        "title": table.title,
        "paper": table.paper,
        "tier": table.tier,
        "cost": table.cost,
        "settings": table.settings,
        "columns": columns,
        "notes": table.notes,
        "runs": f"{able} of {len(rows)} rows have a recipe, one run a seed and row",
        "seeds": None if seeds is None else list(seeds),
        "verdicts": dict(Counter(number["verdict"] for number in numbers)),
        "rows": rows,
        "numbers": numbers,
        "environments": set_ups_of(run for each in found.values() for run in each.runs),
    }
