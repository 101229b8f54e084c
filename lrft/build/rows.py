"""The rows of a recipe: those that are trained on, and those that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.data.encoded import Encoded
from lrft.data.features import FeatureColumns
from lrft.data.formats._each import OfEachRow
from lrft.data.formats._format import Format
from lrft.data.mix import Mixture, Wanted
from lrft.data.removal import Removal, without_overlap, without_repeats
from lrft.data.rows import Rows
from lrft.data.sources import read_sources
from lrft.data.split import split_rows
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, FORMATS
from lrft.registry.config import FormatConfig, MixedSource, Source
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.own_format import own_format
from lrft.registry.source import each_source


@dataclass(frozen=True)
class Splits:
    """The rows of a recipe.

    Attributes:
        held_out: None where there are none.
        removed: what was left out of the training rows; None where nothing is asked to be.
    """

    train: Rows
    held_out: Rows | None
    removed: Removal | None = None


def both_splits(recipe: Recipe) -> Splits:
    """The training rows, and the held-out rows or None.

    Raises:
        DataError: a source cannot be read, or is the same for both.
    """
    data = recipe.data
    train, held_out = _whole_splits(recipe)
    removed = None
    if data.dedup is not None:
        share = data.near_share if data.dedup == "near" else None
        train, removed = without_repeats(train, made_format(recipe), data.features, share)
    if data.drop_overlap and held_out is not None:
        train, removed = without_overlap(train, held_out, made_format(recipe), data.near_share, removed)
    return Splits(train, held_out, removed)


def _whole_splits(recipe: Recipe) -> tuple[Rows, Rows | None]:
    """The training rows with those that are left out of them, and the held-out rows, which these keys do not change."""
    data = recipe.data
    train = read_sources(data.train, "train", data.seed)
    if data.split is not None:
        return split_rows(train, made_format(recipe), data.split, data.seed)
    if data.eval is None:
        return train, None
    held_out = read_sources(data.eval, "eval", data.seed)
    whole = isinstance(data.train, Source) and Path(data.train.source).is_dir()
    if whole and data.train == data.eval and train.fingerprint == held_out.fingerprint:
        raise DataError(
            f"data.eval: the files of {held_out.origin} are those of data.train, since none is named after a split; "
            "write data.split: 0.05 instead, or remove data.eval"
        )
    return train, held_out


def training_rows(recipe: Recipe, limit: int | None = None) -> Rows:
    """The training rows alone.

    Args:
        limit: only the first so many, of several sources of each.

    Raises:
        DataError: see `both_splits`.
    """
    data = recipe.data
    if data.split is not None or data.dedup is not None or data.drop_overlap:
        return both_splits(recipe).train.first(limit)
    return read_sources(data.train, "train", data.seed, limit).first(limit)


def held_out_rows(recipe: Recipe) -> Rows | None:
    """The held-out rows alone, or None.

    Raises:
        DataError: see `both_splits`.
    """
    data = recipe.data
    if data.split is not None:
        return _whole_splits(recipe)[1]
    return None if data.eval is None else read_sources(data.eval, "eval", data.seed)


def mixture(recipe: Recipe, rows: Rows, encoded: Sequence[Encoded], of: Sequence[int]) -> Mixture | None:
    """How the sources of the training rows share an epoch; None where there is one.

    Args:
        encoded, of: the rows as they are trained on, and which of `rows` each is.

    Raises:
        DataError: no row of a source would be seen.
    """
    if not rows.sources:
        return None
    members: list[list[int]] = [[] for _ in rows.sources]
    for index, row in enumerate(encoded):
        if row.targets:
            members[rows.source(of[index])].append(index)
    wanted = [
        Wanted(name, source.weight, source.cap, 1.0 if source.repeat is None else source.repeat)
        for name, source in zip(rows.sources, each_source(recipe.data.train), strict=True)
        if isinstance(source, MixedSource)
    ]
    mix = recipe.data.mix
    alternating = mix.order == "alternating"
    return Mixture(wanted, members, mix.temperature, mix.rows, recipe.train.seed, alternating)


def made_format(recipe: Recipe) -> Format:
    """The format of the rows; where sources say their own, one that reads each row by its source's."""
    config = format_config(recipe)
    form: Format = FORMATS.get(config.method)(config)
    sources = [*each_source(recipe.data.train), *each_source(recipe.data.eval)]
    own = [given for source in sources if (given := own_format(source)) is not None]
    return OfEachRow(form, own) if own else form


def feature_columns(recipe: Recipe) -> FeatureColumns:
    """What of a row is its features, and which of them the adapter knows."""
    columns, chosen = tuple(recipe.data.features), recipe.adapter
    known = ADAPTERS.get(chosen.method).row_features(chosen) if columns and chosen is not None else ()
    return FeatureColumns(columns, known)


def format_config(recipe: Recipe) -> FormatConfig:
    """The settings of the format.

    Raises:
        RecipeError: it is still to be guessed (`build.guess`).
    """
    if recipe.data.format is None:
        raise RecipeError("is not guessed yet; write it", "data.format")
    return recipe.data.format
