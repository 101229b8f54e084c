"""The format of rows whose recipe names none, from their columns."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace

from lrft.core.notes import say
from lrft.data.formats._format import fitting_formats
from lrft.data.rows import Rows
from lrft.data.sources import read_rows, read_sources
from lrft.recipe.check import check
from lrft.recipe.data_section import DataSection
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import flat
from lrft.recipe.tree import dotted
from lrft.registry.axes import FORMATS
from lrft.registry.config import FormatConfig, Source, parse_choice
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.json import Json
from lrft.registry.own_format import own_format
from lrft.registry.source import each_source

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
    found = _guessed(data)
    recipe = loaded.recipe.model_copy(
        update={"data": data.model_copy(update={k: g.value for k, g in found.items()})}
    )
    if problems := check(recipe):
        raise RecipeError(problems)
    told = {keys: found[keys[1]].told for keys in flat(recipe) if keys[0] == "data" and keys[1] in found}
    origins = {dotted(keys): loaded.origins.get(dotted(keys), told.get(keys, "")) for keys in flat(recipe)}
    return replace(loaded, recipe=recipe, origins=origins)


@dataclass(frozen=True)
class _Guess:
    """A value of the data section, and where it is from."""

    value: object
    told: str


def _guessed(data: DataSection) -> dict[str, _Guess]:
    """The keys of the section that follow from the rows: `format`, `train` and `eval` where sources are of several.

    Raises:
        DataError: no format reads the rows of a source, or several do.
    """
    found = _of_training(data)
    config = found["format"].value
    assert isinstance(config, FormatConfig)
    return {**found, **_of_held_out(data, config)}


def _of_held_out(data: DataSection, config: FormatConfig) -> dict[str, _Guess]:
    """`eval` with a format for each of several sources that says none and whose columns say another than `config`."""
    if not isinstance(data.eval, list):
        return {}
    made, told = [], ""
    for place, source in enumerate(data.eval):
        if own_format(source) is None:
            key = f"data.eval.{place}"
            rows = read_rows(_short(source), "eval", data.seed, key)
            with suppress(DataError):  # is then read by `config`, which says what it lacks
                own, why = _of_rows(rows)
                if own != config:
                    say(f"format of {key}: {own.method}, {why}")
                    source, told = source.model_copy(update={"format": own}), why
        made.append(source)
    return {"eval": _Guess(made, told)} if told else {}


def _of_training(data: DataSection) -> dict[str, _Guess]:
    """The same of `data.train` alone: `format`, and `train` where its sources are of several formats."""
    sources = each_source(data.train)
    untold = [source for source in sources if own_format(source) is None]
    if not untold:
        first = own_format(sources[0])
        assert first is not None
        say(
            f"format: {first.method}, as of data.train.0; rows of sources without a format of their own are read so"
        )
        return {"format": _Guess(first, "the format of data.train.0")}
    try:
        config, told = _of_rows(
            read_sources(untold if len(sources) > 1 else data.train, "train", data.seed, LOOKED_AT)
        )
        say(f"format: {config.method}, {told}")
        return {"format": _Guess(config, told)}
    except DataError:
        if len(untold) < 2:
            raise
    made, first_told = [], ""
    for place, source in enumerate(sources):
        if (own := own_format(source)) is None:
            own, told = _of_rows(read_rows(_short(source), "train", data.seed, f"data.train.{place}"))
            say(f"format of data.train.{place}: {own.method}, {told}")
            first_told = first_told or told
        made.append(source.model_copy(update={"format": own}))
    return {"format": _Guess(own_format(made[0]), first_told), "train": _Guess(made, first_told)}


def _short(source: Source) -> Source:
    return (
        source
        if source.take is not None
        else source.model_copy(update={"limit": min(LOOKED_AT, source.limit or LOOKED_AT)})
    )


def _of_rows(rows: Rows) -> tuple[FormatConfig, str]:
    """The format of the first rows, and what it was guessed from."""
    config, columns = guess(rows.first(LOOKED_AT))
    return config, f"guessed from the column{'s' if len(columns) > 1 else ''} {listed(columns, 'and')}"


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
    _say_why_not(rows)
    first, *rest = [*columns, "ANSWER"]
    prompt, completion = (
        json.dumps(text, ensure_ascii=False) for text in (f"{{{first}}}", f" {{{rest[0]}}}")
    )
    example = f"{{method: columns, prompt: {prompt}, completion: {completion}}}"
    raise DataError(
        f"{seen} fit no format that can be guessed; name the one that reads them, {listed(FORMATS.names(), 'or')}, "
        f"with the names of its columns, such as data.format: {example}"
    )


def _say_why_not(rows: Rows) -> None:
    """Of rows that have the columns of a format, what keeps the format from reading them.

    Raises:
        DataError: the first row that it does not read, and why.
    """
    common = set[str].intersection(*(set(row) for row in rows))
    for name in fitting_formats(common):
        form = FORMATS.get(name)(FORMATS.declared(name).config(method=name))
        for index, row in enumerate(rows):
            if type(form).guess(row) is None:
                try:
                    form.example(row)
                except DataError as error:
                    by = f"by the column{'s' if len(form.columns) > 1 else ''} {listed(form.columns, 'and')}"
                    raise DataError(f"{rows.where(index)}: {error} (data.format: {name}, {by})") from error
