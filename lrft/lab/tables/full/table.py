"""Table files of the full tier: published results of real models beside the recipes that repeat them. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lrft.lab.runs.planned import Arm
from lrft.lab.tables.file import Cell, check_rows, lacks_method, read_table
from lrft.recipe import library
from lrft.recipe.document import parse, read_text
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.tree import Place
from lrft.registry.axes import TASKS
from lrft.registry.config import Annotated, Choice, Field, Literal, MethodConfig, Section, model_validator
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem, RecipeError

METRIC = re.compile(r"(?P<task>\w+)(-\d+)?\.\w+")
Read = Literal["T", "R", "J", "A", "2"]  # where a number was read; nothing computed or remembered is a result


class FullCell(Cell):
    """One published result. A plain number is short for `{published: ...}` with the column's provenance."""

    provenance: Read | None = Field(None, description="where the number was read; by default the column's")


class FullColumn(Section):
    """A benchmark, and the number of `lrft eval` that stands for it."""

    metric: str | list[str] | None = Field(
        None,
        description="`TASK.KEY` of eval/adapter.json; several are averaged; none where lrft has no such benchmark",
    )
    scale: float = Field(
        1.0, gt=0, description="ours is multiplied by this: 100 for a share printed in percent"
    )
    unit: str = Field("", description="what the numbers are printed in, such as %")
    tolerance: float | None = Field(None, ge=0, description="largest difference in the column's unit")
    provenance: Read
    digits: int = Field(1, ge=0, le=6, description="digits after the point when shown")

    @model_validator(mode="after")
    def _is_measurable(self) -> FullColumn:
        for metric in self.metrics:
            found = METRIC.fullmatch(metric)
            if found is None or found["task"] not in TASKS.names():
                tasks = ", ".join(TASKS.names())
                raise ValueError(f"metric: {metric!r} is no TASK.KEY; tasks: {tasks}")
        if self.metrics and self.tolerance is None:
            raise ValueError("a column that is measured needs a tolerance")
        return self

    @property
    def metrics(self) -> list[str]:
        """The numbers that are averaged; none where nothing is measured."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or [])


class FullRow(Section):
    """One row: a recipe with overrides, and its published results by column."""

    label: str = Field(min_length=1)
    recipe: str | None = Field(
        None, description="recipe file relative to this one, or packaged name; none where there is no recipe"
    )
    overrides: list[str] = Field(default_factory=list, description="`key.sub=value`, after the table's")
    running: list[str] = Field(
        default_factory=list,
        description="overrides of a run alone, such as files that counting does not need",
    )
    config: str | None = Field(
        None,
        description="packaged configuration, or folder relative to this file, that the model is counted from",
    )
    steps: int | None = Field(None, gt=0, description="optimizer steps as published")
    tokens: float | None = Field(None, gt=0, description="training tokens as published")
    cells: dict[str, FullCell] = Field(
        default_factory=dict, description="by column; none where no number could be verified"
    )


class FullTable(Section):
    """A whole table file of the full tier."""

    title: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    tier: Literal["full"]
    cost: str = Field(min_length=1, description="what running it takes, in words")
    settings: list[str] = Field(
        min_length=1, description="hyper-parameters as published, and where they were read"
    )
    overrides: list[str] = Field(default_factory=list, description="overrides of all rows, before their own")
    tasks: list[Annotated[MethodConfig, Choice(TASKS)]] = Field(
        default_factory=list, description="eval.tasks of every run; by default the recipe's"
    )
    columns: dict[str, FullColumn] = Field(min_length=1)
    rows: list[FullRow] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _columns_exist(self) -> FullTable:
        check_rows([(row.label, row.cells) for row in self.rows], self.columns)
        return self


def load_full(path: Path) -> FullTable:
    """A table file, checked strictly.

    Raises:
        RecipeError: with every problem found, each with its line and key.
    """
    table = read_table(path, FullTable)
    root, _ = parse(read_text(path), Place(str(path), 1, path.parent))
    packaged = {"recipe": library.names(), "config": _configs()}
    problems = []
    for index, row in enumerate(table.rows):
        for key, known in packaged.items():
            name = getattr(row, key)
            if (
                name is not None
                and name.removesuffix(".yaml") not in known
                and not (path.parent / name).exists()
            ):
                message = (
                    f"no {key} {name!r}, neither packaged nor beside this file{did_you_mean(name, known)}"
                )
                place = root.nearest("rows", index, key)
                problems.append(place.problem(f"rows.{index}.{key}", message))
    if problems:
        raise RecipeError(problems)
    return table


def counted_recipe(table: FullTable, row: FullRow, path: Path) -> LoadedRecipe | None:
    """The recipe of a row on its configuration, for counting; None where there is none, or lrft lacks its method.

    Raises:
        RecipeError: it is not valid otherwise.
    """
    return _recipe(table, row, path, _on_config(row, path))


def trained_arm(table: FullTable, row: FullRow, path: Path, overrides: Sequence[str] = ()) -> Arm | None:
    """A row as it is run; None where it has no recipe, or lrft lacks its method.

    Args:
        overrides: after everything in the table.

    Raises:
        RecipeError: the recipe is not valid, or a file that it names is not there.
    """
    bare = _recipe(table, row, path, ())
    if bare is None:
        return None
    tasks = [task.model_dump(mode="json") for task in table.tasks]
    random = bare.recipe.model.weights == "random"  # the configuration is then the model itself
    more = [
        *(_on_config(row, path) if random else ()),
        *([f"eval.tasks={json.dumps(tasks)}"] if tasks else ()),
        *row.running,
        *overrides,
    ]
    loaded = _recipe(table, row, path, more)
    assert loaded is not None, "nothing in `more` chooses a method of the recipe"
    together = (*table.overrides, *row.overrides, *more)
    return Arm(row.label, _source(row, path), together, loaded.recipe, row.label)


def _recipe(table: FullTable, row: FullRow, path: Path, more: Sequence[str]) -> LoadedRecipe | None:
    if row.recipe is None:
        return None
    try:
        return load_recipe(_source(row, path), [*table.overrides, *row.overrides, *more])
    except RecipeError as error:
        if lacks_method(error):
            return None
        rest = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        raise RecipeError(Problem("", f"row {row.label!r}: {error.problems[0]}{rest}", str(path))) from None


def _source(row: FullRow, path: Path) -> str:
    """The file of a row's recipe beside the table, or its packaged name."""
    assert row.recipe is not None, "a row without a recipe"
    beside = path.parent / row.recipe
    return str(beside) if beside.is_file() else row.recipe


def _on_config(row: FullRow, path: Path) -> list[str]:
    """The override that puts a row's recipe on its configuration."""
    if row.config is None:
        return []
    beside = path.parent / row.config
    folder = beside if beside.is_dir() else library.folder() / "tables" / "configs" / row.config
    return [f"model.name={folder.resolve()}"]


def _configs() -> list[str]:
    folder = library.folder() / "tables" / "configs"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
