"""From a recipe to tokenizer and rows."""

from __future__ import annotations

from datetime import date
from functools import partial

from lrft.build.prompts import check_prompts
from lrft.build.rows import both_splits, feature_columns, format_config, held_out_rows, made_format, mixture
from lrft.build.text import Text
from lrft.data.gate import SHOWN
from lrft.data.prepare import prepare
from lrft.data.row_sums import tokens_sum
from lrft.data.tokenize import Renderer
from lrft.evaluation.subject import Progress, silent
from lrft.model.hf import TextConfig
from lrft.model.load import load_config
from lrft.model.rope import positions_of
from lrft.model.tokenizer import load_tokenizer, pad_id
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.protocols import Tokenizer


def read_text(
    recipe: Recipe,
    *,
    training: bool = True,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    today: str | None = None,
    processes: int = 1,
) -> Text:
    """Tokenizer and data; with `training` both splits are encoded and looked at, and `check_text` is the gate.

    Args:
        today: the day, as 2026-11-28, that chat templates which ask for the date are told; by default `data.date` of
            the recipe, or the day it is.
        processes: that make tokens of rows; the result is the same with any number.

    Raises:
        DataError: a row cannot be read or rendered.
        RecipeError: the tokenizer has tokens that the model has not, or `data.template` is of no use.
    """
    config = load_config(recipe.model, trust_remote_code).get_text_config()
    text = _without_rows(recipe, config, trust_remote_code, today)
    if not training:
        text.held_out = held_out_rows(recipe)
        if text.held_out is not None:
            text.fingerprints["eval"] = text.held_out.fingerprint
        return text
    split = both_splits(recipe)
    rows, text.held_out, text.removed = split.train, split.held_out, split.removed
    text.fingerprints["train"] = rows.fingerprint
    prepared = prepare(rows, text.renderer, partial(progress, "tokenizing rows"), processes)
    text.train, text.report, text.rows = prepared.encoded, prepared.report, prepared.rows
    _check_template(recipe, text)
    text.mixture = mixture(recipe, rows, prepared.encoded, prepared.of)
    check_prompts(recipe, text)
    if text.held_out is not None:
        text.fingerprints["eval"] = text.held_out.fingerprint
        _read_held_out(text, recipe, positions_of(config), progress, processes)
    return text


def _check_template(recipe: Recipe, text: Text) -> None:
    """Refuse a chat template that no row was written by."""
    if recipe.data.template is not None and not text.renderer.template.used:
        raise RecipeError(
            f"no row is written by a chat template, data.format: {format_config(recipe).method} joins texts as they "
            "are; remove it, or write data.format.render: chat where the format has that setting",
            "data.template",
        )


def read_renderer(recipe: Recipe, trust_remote_code: bool = False) -> Text:
    """Tokenizer and renderer of a recipe, without its rows.

    Raises:
        RecipeError: as `read_text`.
    """
    config = load_config(recipe.model, trust_remote_code).get_text_config()
    return _without_rows(recipe, config, trust_remote_code, None)


def _without_rows(recipe: Recipe, config: TextConfig, trust_remote_code: bool, today: str | None) -> Text:
    tokenizer, stops = load_tokenizer(recipe.model, trust_remote_code, recipe.data.template)
    if recipe.model.tokenizer is None:
        added = recipe.model.add_tokens
        new = [] if added is None else added.texts
        _check_tokenizer(tokenizer, config.vocab_size, new)
    day = today or recipe.data.date
    renderer = Renderer(
        tokenizer,
        made_format(recipe),
        stops,
        recipe.train.max_length,
        recipe.data.too_long,
        today=date.today() if day is None else date.fromisoformat(day),
        stride=recipe.data.stride,
        labels=() if recipe.model.head is None else tuple(recipe.model.head.labels),
        features=feature_columns(recipe),
    )
    return Text(tokenizer, stops, pad_id(tokenizer, stops), renderer, seed=recipe.data.seed)


def _check_tokenizer(tokenizer: Tokenizer, size: int, new: list[str]) -> None:
    """Refuse a tokenizer whose tokens have no embedding; `new` ones will be given theirs.

    Raises:
        RecipeError: names the first such token.
    """
    vocabulary = tokenizer.get_vocab().items()
    ids = {number: token for token, number in vocabulary if number >= size and token not in new}
    if ids:
        first = min(ids)
        raise RecipeError(
            f"the tokenizer has tokens without an embedding ({len(ids)} of them; {ids[first]!r} is {first}, and the "
            f"model has {size} rows); give a checkpoint whose embedding holds them, or the model's own tokenizer",
            "model.name",
        )


def _read_held_out(
    text: Text, recipe: Recipe, positions: int | None, progress: Progress, processes: int
) -> None:
    """Encode and look at `data.eval`.

    Raises:
        DataError: a row is longer than the model's positions, so it could never be scored.
    """
    assert text.held_out is not None
    prepared = prepare(text.held_out, text.renderer, partial(progress, "tokenizing held-out rows"), processes)
    text.scored, text.held_out_report, text.scored_of = prepared.encoded, prepared.report, prepared.of
    text.scored_rows = prepared.rows
    if positions is not None:
        lengths = [max(len(d.input_ids) for d in row.documents()) for row in prepared.encoded]
        long = [i for i, length in enumerate(lengths) if length > positions]
        if long:
            first = ", ".join(prepared.rows.where(i) for i in long[:SHOWN])
            raise DataError(
                f"data.eval: {len(long)} of {len(prepared.rows)} rows have more tokens than the model has positions "
                f"({positions}; first: {first}); shorten them, or write data.too_long: drop or truncate_left"
            )
    seen = {tokens_sum(row.input_ids) for row in text.train}
    both = [
        i for i, row in enumerate(prepared.encoded) if row.input_ids and tokens_sum(row.input_ids) in seen
    ]
    text.overlap = (len(both), tuple(prepared.rows.where(i) for i in both[:SHOWN]))
