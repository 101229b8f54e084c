"""The exact tier: every number of a table counted from the modules that training would attach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lrft.core import stop
from lrft.lab.models import Models
from lrft.lab.tables.exact.kept import Kept, row_key
from lrft.lab.tables.exact.load import LoadedTable, row_recipe
from lrft.lab.tables.exact.metrics import values
from lrft.lab.tables.exact.schema import Column, Row
from lrft.lab.tables.file import Cell
from lrft.lab.tables.record import NumberRecord
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError

EQUAL, CONFLICT, MISSED, ABSENT = "equal", "conflict", "missed", "method not in lrft yet"


@dataclass(frozen=True)
class Number:
    """One cell with what was counted.

    Attributes:
        ours: the count in the column's unit; None where the method is not there.
        verdict: `equal` within the tolerance; `conflict` where print is known to differ; `missed`; or the method is
            not in lrft yet.
    """

    row: str
    column: str
    published: float
    ours: float | None
    verdict: str
    provenance: str
    conflict: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours less published."""
        return None if self.ours is None else self.ours - self.published

    def record(self) -> NumberRecord:
        """Plain values."""
        return {
            "row": self.row,
            "column": self.column,
            "published": self.published,
            "ours": self.ours,
            "verdict": self.verdict,
            "provenance": self.provenance,
            "conflict": self.conflict,
            "difference": self.difference,
        }


def count_table(
    loaded: LoadedTable,
    models: Models | None = None,
    progress: Callable[[int, int], None] | None = None,
    kept: Kept | None = None,
) -> Iterator[Number]:
    """Every number of the table, row by row.

    Args:
        kept: rows that were counted before, which are not counted again.

    Raises:
        RecipeError: a row's overrides are wrong, or a column measures something its recipe does not have.
    """
    table, models, kept = loaded.table, models or Models(), kept or Kept()
    keys = []
    for done, row in enumerate(table.rows):
        stop.poll()
        recipe = row_recipe(loaded, row)
        measured: dict[str, float] | None = None
        if recipe is not None:
            metrics = list(dict.fromkeys(table.columns[name].metric for name in row.cells))
            keys.append(row_key(recipe.recipe, metrics, models.trusted))
            measured = kept.get(loaded.name, keys[-1])
            if measured is None:
                measured = _values(loaded, row, recipe.recipe, models, metrics)
                kept.put(loaded.name, keys[-1], measured)
        yield from _numbers(loaded, row, measured)
        if progress is not None:
            progress(done + 1, len(table.rows))
    kept.close(loaded.name, keys)


def _values(
    loaded: LoadedTable, row: Row, recipe: Recipe, models: Models, metrics: list[str]
) -> dict[str, float]:
    try:
        return values(recipe, models, metrics)
    except RecipeError as error:
        raise RecipeError(f"{loaded.path}: row {row.label!r}: {error}") from None


def _numbers(loaded: LoadedTable, row: Row, measured: dict[str, float] | None) -> Iterator[Number]:
    """The cells of a row; without measured values its method is not there."""
    for name, cell in row.cells.items():
        column = loaded.table.columns[name]
        ours = None if measured is None else measured[column.metric] / column.scale
        said = judge_count(cell, column, ours)
        source = cell.provenance or column.provenance
        yield Number(row.label, name, cell.published, ours, said, source, cell.conflict)


def judge_count(cell: Cell, column: Column, ours: float | None) -> str:
    """What the count says of the published number."""
    if ours is None:
        return ABSENT
    allowed = cell.tolerance
    if allowed is None:
        allowed = max(column.tolerance, column.relative * abs(cell.published))
    if abs(ours - cell.published) <= allowed * (1 + 1e-9) + 1e-12:
        return EQUAL
    return CONFLICT if cell.conflict else MISSED
