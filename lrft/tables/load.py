"""Table files: found by name, checked strictly, every mistake with its file, line and key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lrft.core.errors import RecipeError, UsageError
from lrft.core.names import did_you_mean
from lrft.recipe import library
from lrft.recipe.document import parse, read_text
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.tree import Place, dotted
from lrft.tables.schema import Row, TableFile


@dataclass(frozen=True)
class LoadedTable:
    """A checked table and where it came from."""

    name: str
    path: Path
    table: TableFile


def folder() -> Path:
    """Where the packaged tables are."""
    return library.folder() / "tables"


def names() -> list[str]:
    """Every packaged table, by file name; `_parts.yaml` are none."""
    return sorted(path.stem for path in folder().glob("[!_]*.yaml"))


def scaled() -> dict[str, Path]:
    """Name -> file of the packaged tables that are replayed by training, at a small scale."""
    return {path.stem: path for path in sorted((folder() / "scaled").glob("[!_]*.yaml"))}


def load_table(name: str) -> LoadedTable:
    """A table by packaged name, or by file.

    Raises:
        UsageError: there is none of that name.
        RecipeError: with every problem found in the file.
    """
    path = Path(name) if name.endswith(".yaml") else folder() / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"no table {name!r}{did_you_mean(name, names())}")
    root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
    try:
        table = TableFile.model_validate(root.plain())
    except ValidationError as error:
        for one in error.errors():
            problems.append(root.nearest(*one["loc"]).problem(dotted(one["loc"]), _sentence(one["msg"])))
        raise RecipeError(problems) from None
    if problems:
        raise RecipeError(problems)
    return LoadedTable(path.stem, path, table)


def row_recipe(loaded: LoadedTable, row: Row) -> LoadedRecipe | None:
    """The recipe of a row; None where lrft does not have its method yet.

    Raises:
        RecipeError: the overrides are wrong in another way.
    """
    overrides = [_from_here(text, loaded.path.parent) for text in (*loaded.table.overrides, *row.overrides)]
    try:
        return load_recipe(str(loaded.path.parent / loaded.table.recipe), overrides)
    except RecipeError as error:
        unknown = [
            p for p in error.problems if p.key.endswith(".method") and p.message.startswith("unknown ")
        ]
        if unknown:
            return None
        raise RecipeError(f"{loaded.path}: row {row.label!r}: {error}") from None


def _from_here(text: str, here: Path) -> str:
    """An override whose model is a folder beside the table, made independent of the working directory."""
    key, equals, value = text.partition("=")
    if key == "model.name" and equals and (here / value).is_dir():
        return f"{key}={(here / value).resolve()}"
    return text


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
