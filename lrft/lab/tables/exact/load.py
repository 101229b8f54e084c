"""Table files of the exact tier: checked strictly, every mistake with its file, line and key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrft.lab.tables import library
from lrft.lab.tables.exact.schema import Row, TableFile
from lrft.lab.tables.file import lacks_method, read_table
from lrft.lab.tables.library import EXACT, Entry
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.registry.errors import RecipeError, UsageError


@dataclass(frozen=True)
class LoadedTable:
    """A checked table and where it came from."""

    name: str
    path: Path
    table: TableFile


def folder() -> Path:
    """Where the packaged tables are."""
    return library.folder()


def names() -> list[str]:
    """Every packaged table of the exact tier, by file name."""
    return sorted(library.packaged(EXACT))


def load_table(name: str | Entry) -> LoadedTable:
    """A table of the exact tier by packaged name, or by file.

    Raises:
        UsageError: there is none of that name, or it is of another tier.
        RecipeError: with every problem found in the file.
    """
    entry = library.find(name) if isinstance(name, str) else name
    if entry.tier != EXACT:
        raise UsageError(f"{entry.name} is a table of the {entry.tier} tier, and only exact ones are counted")
    return LoadedTable(entry.name, entry.path, read_table(entry.path, TableFile))


def row_recipe(loaded: LoadedTable, row: Row) -> LoadedRecipe | None:
    """The recipe of a row; None where lrft does not have its method yet.

    Raises:
        RecipeError: the overrides are wrong in another way.
    """
    here = loaded.path.parent
    overrides = [_from_here(text, here) for text in (*loaded.table.overrides, *row.overrides)]
    try:
        return load_recipe(_file(row.recipe or loaded.table.recipe, here), overrides)
    except RecipeError as error:
        if lacks_method(error):
            return None
        raise RecipeError(f"{loaded.path}: row {row.label!r}: {error}") from None


def _file(recipe: str, here: Path) -> str:
    """The recipe beside the table or among the packaged tables; else the name, of a packaged recipe."""
    beside = [at / recipe for at in (here, library.folder())]
    return next((str(path) for path in beside if path.is_file()), recipe)


def _from_here(text: str, here: Path) -> str:
    """An override whose model is a folder beside the table or the packaged ones, made a whole path."""
    key, equals, value = text.partition("=")
    if key == "model.name" and equals:
        for at in (here, library.folder()):
            if (at / value).is_dir():
                return f"{key}={(at / value).resolve()}"
    return text
