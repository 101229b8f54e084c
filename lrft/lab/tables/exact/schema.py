"""What a table file of the exact tier is: a paper's table, row by row, each number with its provenance. No torch."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from lrft.lab.tables.file import Cell, Provenance, check_rows
from lrft.registry.config import Field, Literal, Section, model_validator

# What a column can measure. A metric may be a sum of these, such as `weight_bytes + optimizer_bytes`.
METRICS = {
    "base": "parameters of the base model",
    "linear": "those in linear layers of its body",
    "other": "the rest: embedding, head, norms, biases",
    "trainable": "parameters that train",
    "trainable_percent": "of base and adapter together",
    "percent_of_base": "of the base alone",
    "weight_bytes": "base weights as they are stored",
    "linear_bytes": "those of the linear layers",
    "other_bytes": "those of the rest",
    "trainable_bytes": "parameters of the adapter",
    "gradient_bytes": "gradients held at once",
    "optimizer_bytes": "state of the optimizer after one step",
    "hidden": "width of the base model",
    "layers": "its blocks",
    "heads": "its attention heads",
    "budget@STEP": "rank components that a dynamic allocation keeps after step STEP of `train.max_steps`",
}
BUDGET = re.compile(r"budget@(\d+)")


def terms(metric: str) -> list[str]:
    """The summands of a metric."""
    return [term.strip() for term in metric.split("+")]


def _known(metric: str) -> str:
    unknown = [term for term in terms(metric) if term not in METRICS and not BUDGET.fullmatch(term)]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(METRICS)}, nor a sum of them")
    return metric


class Column(Section):
    """A quantity of a row."""

    metric: Annotated[str, AfterValidator(_known)] = Field(
        description="what is measured: `trainable`, `trainable_percent`, ..., or a sum `a + b`"
    )
    unit: str = Field("", description="what the numbers are printed in, such as M or %")
    scale: float = Field(1.0, gt=0, description="the measured value is divided by this before it is compared")
    provenance: Provenance
    tolerance: float = Field(0.0, ge=0, description="largest difference in the column's unit")
    relative: float = Field(
        0.0, ge=0, description="or this share of the published number, whichever is larger"
    )
    digits: int = Field(0, ge=0, le=6, description="digits after the point when shown")


class Row(Section):
    """One row: the table's recipe or its own with overrides, and its published numbers by column."""

    label: str = Field(min_length=1)
    recipe: str | None = Field(None, description="recipe file relative to this file; by default the table's")
    overrides: list[str] = Field(default_factory=list, description="`key.sub=value`, as on the command line")
    cells: dict[str, Cell] = Field(min_length=1)


class TableFile(Section):
    """A whole table file."""

    title: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    tier: Literal["exact"] = "exact"
    cost: str = Field("seconds to a minute, no weights", description="what counting it takes, in words")
    recipe: str = Field("_base.yaml", description="recipe the rows change, relative to this file")
    overrides: list[str] = Field(default_factory=list, description="overrides of all rows, before their own")
    columns: dict[str, Column] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _columns_exist(self) -> TableFile:
        check_rows([(row.label, row.cells) for row in self.rows], self.columns)
        return self
