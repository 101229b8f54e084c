"""The format of rows whose recipe names none, from their columns."""

from __future__ import annotations

from dataclasses import replace

from lrft.core.notes import say
from lrft.data.rows import Rows
from lrft.data.sources import read_sources
from lrft.recipe.check import check
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import flat
from lrft.recipe.tree import dotted
from lrft.registry.axes import FORMATS
from lrft.registry.config import FormatConfig, parse_choice
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.json import Json

LOOKED_AT = 20  # rows of each source


def with_format(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with the one format that reads the first rows, if it names none; says which it is.

    Raises:
        DataError: no format reads them, or several do.
        RecipeError: the format does not go with the rest of the recipe.
    """
    data = loaded.recipe.data
    if data.format is not None:
        return loaded
    rows = read_sources(data.train, "train", data.seed, LOOKED_AT).first(LOOKED_AT)
    config, columns = guess(rows)
    recipe = loaded.recipe.model_copy(update={"data": data.model_copy(update={"format": config})})
    if problems := check(recipe):
        raise RecipeError(problems)
    told = f"guessed from the column{'s' if len(columns) > 1 else ''} {listed(columns, 'and')}"
    say(f"format: {config.method}, {told}")
    origins = {dotted(keys): loaded.origins.get(dotted(keys), told) for keys in flat(recipe)}
    return replace(loaded, recipe=recipe, origins=origins)


def guess(rows: Rows) -> tuple[FormatConfig, tuple[str, ...]]:
    """The one format that all of the rows are of by their columns, and those columns.

    Raises:
        DataError: none is, or several are; names the columns and what would work.
    """
    found: dict[str, tuple[FormatConfig, tuple[str, ...]]] = {}
    for name in FORMATS.names():
        kind = FORMATS.get(name)
        said = [kind.guess(row) for row in rows]
        settings: dict[str, Json] | None = said[0]
        if settings is not None and all(one == settings for one in said):
            config = parse_choice(FORMATS, {"method": name, **settings})
            assert isinstance(config, FormatConfig)
            found[name] = config, kind(config).columns
    if len(found) == 1:
        return next(iter(found.values()))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    seen = f"data.format: the columns {listed(columns, 'and')} ({rows.where(0)})"
    if found:
        remedy = f"write which one it is, such as data.format: {next(iter(found))}"
        raise DataError(f"{seen} fit {listed(found, 'and')}; {remedy}")
    first, *rest = [*columns, "ANSWER"]
    example = f'{{method: columns, prompt: "{{{first}}}", completion: " {{{rest[0]}}}"}}'
    raise DataError(
        f"{seen} fit no format that can be guessed; name the one that reads them, {listed(FORMATS.names(), 'or')}, "
        f"with the names of its columns, such as data.format: {example}"
    )
