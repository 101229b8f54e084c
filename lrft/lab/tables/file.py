"""What the table files of all tiers share: strict reading, and published numbers that say where they were read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from lrft.recipe.document import parse, read_text
from lrft.recipe.tree import Place, dotted
from lrft.registry.config import Field, Literal, Section, model_validator
from lrft.registry.errors import RecipeError

PROVENANCE = {
    "T": "the paper's text",
    "R": "the authors' repository",
    "J": "PEFT's result files",
    "A": "the paper's abstract",
    "2": "second hand",
    "C": "computed from the published configuration; no publication claimed",
    "M=C": "from memory, and the computed figure agrees to the printed digit",
}
Provenance = Literal["T", "R", "J", "A", "2", "C", "M=C"]

S = TypeVar("S", bound=Section)


class Cell(Section):
    """One published number. A plain number is short for `{published: ...}` with the column's provenance."""

    published: float
    provenance: Provenance | None = Field(
        None, description="where the number was read; by default the column's"
    )
    conflict: str | None = Field(
        None, description="why print and count differ; both are shown, and code is never tuned to print"
    )
    tolerance: float | None = Field(
        None, ge=0, description="largest difference; by default the column's, absolute or relative"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return {"published": float(value)} if isinstance(value, int | float) else value


def check_rows(cells: Sequence[tuple[str, Collection[str]]], columns: Collection[str]) -> None:
    """Refuse cells of no column, and labels that name two rows.

    Args:
        cells: label of every row, and the names of its cells.

    Raises:
        ValueError: names the row.
    """
    for label, names in cells:
        for name in names:
            if name not in columns:
                raise ValueError(f"row {label!r}: unknown column {name!r}; columns: {', '.join(columns)}")
    if len({label for label, _ in cells}) < len(cells):
        raise ValueError("two rows have the same label; every label names one row")


def read_table(path: Path, schema: type[S]) -> S:
    """A table file, checked strictly.

    Raises:
        RecipeError: with every problem found, each with its file, line and key.
    """
    root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
    try:
        table = schema.model_validate(root.plain())
    except ValidationError as error:
        for one in error.errors():
            message = one["msg"].removeprefix("Value error, ")
            problems.append(root.nearest(*one["loc"]).problem(dotted(one["loc"]), message))
        raise RecipeError(problems) from None
    if problems:
        raise RecipeError(problems)
    return table


def lacks_method(error: RecipeError) -> bool:
    """Whether a recipe is wrong because it chooses a method that lrft does not have."""
    return any(p.key.endswith(".method") and p.message.startswith("unknown ") for p in error.problems)
