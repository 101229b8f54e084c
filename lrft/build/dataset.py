"""From a recipe to tokenizer and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import partial
from itertools import islice
from typing import Any

from lrft.data.gate import SCORED_WHOLE, SHOWN, GateReport
from lrft.data.prepare import Prepared, prepare
from lrft.data.show import facts
from lrft.data.sources import Rows, read_rows
from lrft.data.steps import TrainData
from lrft.data.tokenize import Encoded, Renderer, encode_all
from lrft.evaluation.subject import Progress
from lrft.model.load import load_config, load_tokenizer, pad_id
from lrft.recipe.length import length_problems
from lrft.recipe.schema import Recipe
from lrft.registry.axes import FORMATS
from lrft.registry.config import Source
from lrft.registry.errors import DataError, RecipeError


def silent(what: str, done: int, total: int) -> None:
    """No progress display."""


@dataclass
class Text:
    """Tokenizer and rows of a recipe, rendered and checked.

    Attributes:
        train: encoded training rows; empty where only evaluation is wanted.
        report: what the data gate found in them.
        held_out: rows of `data.eval`, or None.
        held_out_report: what the data gate found in those; None where only evaluation is wanted.
        overlap: where the first held-out rows are that stand among the training rows too, and how many there are.
    """

    tokenizer: Any
    stop_ids: set[int]
    pad_id: int
    renderer: Renderer
    train: list[Encoded] = field(default_factory=list)
    report: GateReport | None = None
    held_out: Rows | None = None
    held_out_report: GateReport | None = None
    overlap: tuple[int, tuple[str, ...]] = (0, ())
    fingerprints: dict[str, str] = field(default_factory=dict)
    _held_out: list[Encoded] | None = None

    def held_out_encoded(self, limit: int | None = None) -> list[Encoded]:
        """The first held-out rows, encoded; rows that are too long are left out."""
        if self.held_out is None:
            return []
        kept = min(limit or len(self.held_out), len(self.held_out))
        if self._held_out is not None:
            found = self._held_out[:kept]
        else:
            rows = replace(self.held_out, rows=[self.held_out[i] for i in range(kept)])
            found = encode_all(rows, self.renderer)
        return [e for e in found if not e.dropped and e.targets]

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a model of `size` embeddings does not know, which another model's tokenizer may give.

        Raises:
            RecipeError: names the first row that has one.
        """
        for split, rows in (("training", self.train), ("held-out", self._held_out or [])):
            for index, row in enumerate(rows):
                if max(row.input_ids, default=0) >= size:
                    found = f"{split} row {index} has token {max(row.input_ids)}, and the model knows {size}"
                    raise RecipeError(f"{found}; give a tokenizer of fewer", "model.tokenizer")

    def facts(self) -> list[tuple[str, str]]:
        """What the gate found in either split, a line a fact, for people."""
        return fact_lines(self.record())

    def record(self) -> dict[str, Any]:
        """The same as plain values: the gate's record of the training rows, and that of the held-out ones in it."""
        return {
            **({} if self.report is None else self.report.record()),
            "held_out": None if self.held_out_report is None else self.held_out_report.record(),
            "rows_in_both_splits": self.overlap[0],
            "first_in_both_splits": list(self.overlap[1]),
            "date": self.renderer.today.isoformat(),
            "asks_for_the_date": self.renderer.asks_for_the_date,
        }

    def encoded(self, source: Source, key: str, limit: int | None = None) -> list[Encoded]:
        """The rows of another source in the recipe's format; rows that are too long are left out.

        Args:
            limit: only so many usable rows, the first ones; no more are encoded than that takes.

        Raises:
            DataError: nothing is left, at the recipe's `key`.
        """
        found = list(islice(self._usable(read_rows(source, "train")), limit))
        if not found:
            raise DataError(f"{key}: no row has a token to learn within train.max_length")
        return found

    def _usable(self, rows: Rows) -> Iterator[Encoded]:
        """The rows with something to learn within `max_length`, encoded as they are asked for."""
        for index, row in enumerate(rows):
            try:
                encoded = self.renderer.encode(row)
            except DataError as error:
                raise DataError(f"{rows.where(index)}: {error}") from error
            if not encoded.dropped and encoded.targets and len(encoded.input_ids) <= self.renderer.max_length:
                yield encoded


def fact_lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What `Text.record` says, a line a fact, for people."""
    found = _facts_of(record) if "rows" in record else []
    if record["held_out"] is not None:
        found += [(f"held-out {label}", value) for label, value in _facts_of(record["held_out"])]
    if record["asks_for_the_date"]:
        found.append(("date the template writes", record["date"]))
    if both := record["rows_in_both_splits"]:
        found.append(
            ("rows in both splits", f"{both:,} (first: {', '.join(record['first_in_both_splits'])})")
        )
    return found


def _facts_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    return facts(GateReport(**{f.name: record[f.name] for f in fields(GateReport)}))


def read_text(
    recipe: Recipe,
    *,
    training: bool = True,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    today: str | None = None,
) -> Text:
    """Tokenizer and data; with `training` both splits are encoded and looked at, and `check_text` is the gate.

    Args:
        today: the day, as 2026-11-28, that chat templates which ask for the date are told; by default `data.date` of
            the recipe, or the day it is.

    Raises:
        DataError: a row cannot be read or rendered.
        RecipeError: the tokenizer has tokens that the model has not.
    """
    config = load_config(recipe.model, trust_remote_code).get_text_config()
    text = _without_rows(recipe, config, trust_remote_code, today)
    renderer = text.renderer
    if recipe.data.eval is not None:
        text.held_out = read_rows(recipe.data.eval, "eval")
        text.fingerprints["eval"] = text.held_out.fingerprint
    if training:
        rows = read_rows(recipe.data.train, "train")
        text.fingerprints["train"] = rows.fingerprint
        prepared = prepare(rows, renderer, partial(progress, "tokenizing rows"))
        text.train, text.report = prepared.encoded, prepared.report
        if text.held_out is not None:
            _read_held_out(text, recipe, getattr(config, "max_position_embeddings", None), progress)
    return text


def read_rendered(
    recipe: Recipe, source: Source, trust_remote_code: bool, progress: Progress
) -> tuple[Prepared, Any]:
    """The rows of one source as the recipe renders them, and the tokenizer; nothing is judged.

    Raises:
        DataError, RecipeError: as `read_text`.
    """
    config = load_config(recipe.model, trust_remote_code).get_text_config()
    text = _without_rows(recipe, config, trust_remote_code, None)
    return prepare(
        read_rows(source, "train"), text.renderer, partial(progress, "tokenizing rows")
    ), text.tokenizer


def _without_rows(recipe: Recipe, config: Any, trust_remote_code: bool, today: str | None) -> Text:
    tokenizer, stops = load_tokenizer(recipe.model, trust_remote_code)
    if recipe.model.tokenizer is None:
        _check_tokenizer(tokenizer, config.vocab_size)
    form = FORMATS.get(recipe.data.format.method)(recipe.data.format)
    day = today or recipe.data.date
    renderer = Renderer(
        tokenizer,
        form,
        stops,
        recipe.train.max_length,
        recipe.data.too_long,
        today=date.today() if day is None else date.fromisoformat(day),
    )
    return Text(tokenizer, stops, pad_id(tokenizer, stops), renderer)


def check_text(text: Text, recipe: Recipe) -> None:
    """The gate: stop unless both splits can be used as the recipe says.

    Raises:
        DataError: every reason, with numbers, the first rows it concerns, and what to set (exit code 3).
    """
    assert text.report is not None, "only evaluation was wanted"
    text.report.check(recipe.data.allow_empty_targets, recipe.data.too_long)
    if text.held_out_report is not None:
        # A held-out row may be longer than train.max_length, and one without a target is left out and counted.
        text.held_out_report.check(True, SCORED_WHOLE, "data.eval")
        if not text.held_out_encoded(recipe.eval.limit):
            raise DataError("data.eval: no row has a token to score; check data.format and data.too_long")


def _check_tokenizer(tokenizer: Any, size: int) -> None:
    """Refuse a tokenizer whose tokens have no embedding.

    Raises:
        RecipeError: names the first such token.
    """
    ids = {number: token for token, number in tokenizer.get_vocab().items() if number >= size}
    if ids:
        first = min(ids)
        raise RecipeError(
            f"the tokenizer has tokens without an embedding ({len(ids)} of them; {ids[first]!r} is {first}, and the "
            f"model has {size} rows); give a checkpoint whose embedding holds them, or the model's own tokenizer",
            "model.name",
        )


def _read_held_out(text: Text, recipe: Recipe, positions: int | None, progress: Progress) -> None:
    """Encode and look at `data.eval`.

    Raises:
        DataError: a row is longer than the model's positions, so it could never be scored.
    """
    assert text.held_out is not None
    prepared = prepare(text.held_out, text.renderer, partial(progress, "tokenizing held-out rows"))
    text._held_out, text.held_out_report = prepared.encoded, prepared.report
    if positions is not None:
        lengths = [max(len(d.input_ids) for d in row.documents()) for row in prepared.encoded]
        long = [i for i, length in enumerate(lengths) if length > positions]
        if long:
            first = ", ".join(text.held_out.where(i) for i in long[:SHOWN])
            raise DataError(
                f"data.eval: {len(long)} of {len(text.held_out)} rows have more tokens than the model has positions "
                f"({positions}; first: {first}); shorten them, or write data.too_long: drop or truncate_left"
            )
    seen = {tuple(row.input_ids) for row in text.train}
    both = [i for i, row in enumerate(prepared.encoded) if row.input_ids and tuple(row.input_ids) in seen]
    text.overlap = (len(both), tuple(text.held_out.where(i) for i in both[:SHOWN]))


def possible_steps(recipe: Recipe, text: Text, world: int = 1, rank: int = 0) -> list[int]:
    """Steps of the run, packed and not where only the model can tell which it will be."""
    settings = recipe.train
    packings = [True, False] if settings.packing is None else [settings.packing]
    cut = [train_data(recipe, text, world, rank, packing) for packing in packings]
    return [data.total_steps(settings.max_steps, settings.epochs) for data in cut]


def check_steps(recipe: Recipe, possible: Sequence[int], ranks: Sequence[int] = ()) -> None:
    """Refuse settings that fit into none of these lengths of the run.

    Raises:
        RecipeError: with every setting that does not fit into the first.
    """
    problems = [length_problems(recipe, steps, ranks) for steps in possible]
    if all(problems):
        raise RecipeError(problems[0])


def train_data(
    recipe: Recipe, text: Text, world: int = 1, rank: int = 0, packing: bool | None = None
) -> TrainData:
    """The training rows cut into steps, for process `rank` of `world`.

    Args:
        packing: whether rows are packed, once it was tried on the model; by default as the recipe has it.
    """
    settings = recipe.train
    return TrainData(
        text.train,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        max_length=settings.max_length,
        packing=settings.packing is not False if packing is None else packing,
        seed=settings.seed,
        pad_id=text.pad_id,
        world=world,
        rank=rank,
    )
