"""What a table file is: a paper's table, row by row, each number with its provenance. No torch here."""

from __future__ import annotations

from typing import Any

from lrft.core.config import Field, Literal, Section, model_validator

PROVENANCE = {
    "T": "the paper's text",
    "R": "the authors' repository",
    "J": "PEFT's result files",
    "A": "the paper's abstract",
    "2": "second hand",
    "C": "computed from the published configuration; no publication claimed",
    "M=C": "from memory, and the computed figure agrees to the printed digit",
}


class Cell(Section):
    """One published number. A plain number is short for `{published: ...}` with the column's provenance."""

    published: float
    provenance: Literal["T", "R", "J", "A", "2", "C", "M=C"] | None = Field(
        None, description="where the number was read; by default the column's"
    )
    conflict: str | None = Field(
        None, description="why print and count differ; both are shown, and code is never tuned to print"
    )
    tolerance: float | None = Field(None, ge=0, description="largest difference; by default the column's")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"published": float(value)} if isinstance(value, int | float) else value


class Column(Section):
    """A quantity of a row."""

    metric: str = Field(min_length=1, description="what is measured: `trainable`, `trainable_percent`, ...")
    unit: str = Field("", description="what the numbers are printed in, such as M or %")
    scale: float = Field(1.0, gt=0, description="the measured value is divided by this before it is compared")
    provenance: Literal["T", "R", "J", "A", "2", "C", "M=C"]
    tolerance: float = Field(0.0, ge=0, description="largest difference in the column's unit")
    relative: float = Field(
        0.0, ge=0, description="or this share of the published number, whichever is larger"
    )
    digits: int = Field(0, ge=0, le=6, description="digits after the point when shown")


class Row(Section):
    """One row: the table's recipe with overrides, and its published numbers by column."""

    label: str = Field(min_length=1)
    overrides: list[str] = Field(default_factory=list, description="`key.sub=value`, as on the command line")
    cells: dict[str, Cell] = Field(min_length=1)


class TableFile(Section):
    """A whole table file."""

    title: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    tier: Literal["exact"] = "exact"
    recipe: str = Field("_base.yaml", description="recipe the rows change, relative to this file")
    overrides: list[str] = Field(default_factory=list, description="overrides of all rows, before their own")
    columns: dict[str, Column] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _columns_exist(self) -> TableFile:
        for row in self.rows:
            for name in row.cells:
                if name not in self.columns:
                    raise ValueError(
                        f"row {row.label!r}: unknown column {name!r}; columns: {', '.join(self.columns)}"
                    )
        if len({row.label for row in self.rows}) < len(self.rows):
            raise ValueError("two rows have the same label; every label names one row")
        return self
