"""The exact tier: every number of a table counted from the modules that training would attach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lrft.assemble.measure import measure
from lrft.core.errors import RecipeError
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.tables.load import LoadedTable, row_recipe
from lrft.tables.schema import Cell, Column

EQUAL, CONFLICT, MISSED, ABSENT = "equal", "conflict", "missed", "method not in lrft yet"
OF_OPTIMIZER = "optimizer_bytes"


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

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "difference": self.difference}


class Models:
    """Base models without weights, each built once."""

    def __init__(self) -> None:
        self.built: dict[tuple[str, str], CausalLM] = {}

    def get(self, section: Any) -> CausalLM:
        """The model of a recipe's `model` section."""
        key = (section.name, section.dtype)
        if key not in self.built:
            self.built[key] = load_model(section, meta=True)
        return self.built[key]


def count_table(
    loaded: LoadedTable, models: Models | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[Number]:
    """Every number of the table, row by row.

    Raises:
        RecipeError: a row's overrides are wrong, or a column measures something there is not.
    """
    table, models = loaded.table, models or Models()
    for done, row in enumerate(table.rows):
        recipe = row_recipe(loaded, row)
        measured: dict[str, Any] | None = None
        if recipe is not None:
            wanted = {table.columns[name].metric for name in row.cells}
            measured = measure(recipe.recipe, models.get(recipe.recipe.model), OF_OPTIMIZER in wanted)
        for name, cell in row.cells.items():
            column = table.columns[name]
            if measured is not None and column.metric not in measured:
                known = ", ".join(sorted(measured))
                raise RecipeError(
                    f"{loaded.path}: columns.{name}.metric: {column.metric!r} is none of {known}"
                )
            ours = None if measured is None else measured[column.metric] / column.scale
            yield Number(
                row.label,
                name,
                cell.published,
                ours,
                verdict(cell, column, ours),
                cell.provenance or column.provenance,
                cell.conflict,
            )
        if progress is not None:
            progress(done + 1, len(table.rows))


def verdict(cell: Cell, column: Column, ours: float | None) -> str:
    """What the count says of the published number."""
    if ours is None:
        return ABSENT
    allowed = column.tolerance if cell.tolerance is None else cell.tolerance
    allowed = max(allowed, column.relative * abs(cell.published))
    if abs(ours - cell.published) <= allowed * (1 + 1e-9) + 1e-12:
        return EQUAL
    return CONFLICT if cell.conflict else MISSED
