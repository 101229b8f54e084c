"""From a recipe to tokenizer and rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lrft.core.axes import FORMATS
from lrft.core.config import Source
from lrft.core.errors import DataError, RecipeError
from lrft.data.gate import GateReport
from lrft.data.prepare import prepare
from lrft.data.sources import Rows, read_rows
from lrft.data.steps import TrainData
from lrft.data.tokenize import Encoded, Renderer, encode_all
from lrft.evaluate.subject import Progress
from lrft.model.load import load_tokenizer, pad_id
from lrft.recipe.schema import Recipe


def silent(what: str, done: int, total: int) -> None:
    """No progress display."""


@dataclass
class Text:
    """Tokenizer and rows of a recipe, rendered and checked.

    Attributes:
        train: encoded training rows; empty where only evaluation is wanted.
        report: what the data gate found in them.
        held_out: rows of `data.eval`, or None.
    """

    tokenizer: Any
    stop_ids: set[int]
    pad_id: int
    renderer: Renderer
    train: list[Encoded] = field(default_factory=list)
    report: GateReport | None = None
    held_out: Rows | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def held_out_encoded(self, limit: int | None = None) -> list[Encoded]:
        """The held-out rows, encoded; rows that are too long are left out."""
        if self.held_out is None:
            return []
        kept = min(limit or len(self.held_out), len(self.held_out))
        rows = replace(self.held_out, rows=[self.held_out[i] for i in range(kept)])
        return [e for e in encode_all(rows, self.renderer) if not e.dropped and e.targets]

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a model of `size` embeddings does not know, which another model's tokenizer may give.

        Raises:
            RecipeError: names the first training row that has one.
        """
        for index, row in enumerate(self.train):
            if max(row.input_ids, default=0) >= size:
                found = f"training row {index} has token {max(row.input_ids)}, and the model knows {size}"
                raise RecipeError(f"{found}; give a tokenizer of fewer", "model.tokenizer")

    def encoded(self, source: Source, key: str) -> list[Encoded]:
        """The rows of another source in the recipe's format; rows that are too long are left out.

        Raises:
            DataError: nothing is left, at the recipe's `key`.
        """
        rows = read_rows(source, "train")
        found = [e for e in encode_all(rows, self.renderer) if not e.dropped and e.targets]
        found = [e for e in found if len(e.input_ids) <= self.renderer.max_length]
        if not found:
            raise DataError(f"{key}: no row has a token to learn within train.max_length")
        return found


def read_text(
    recipe: Recipe, *, training: bool = True, trust_remote_code: bool = False, progress: Progress = silent
) -> Text:
    """Tokenizer and data; with `training`, the gate runs over the training rows.

    Raises:
        DataError: the rows cannot be read, or the gate stops them (exit code 3, with the numbers).
    """
    tokenizer, stops = load_tokenizer(recipe.model, trust_remote_code)
    form = FORMATS.get(recipe.data.format.method)(recipe.data.format)
    renderer = Renderer(tokenizer, form, stops, recipe.train.max_length, recipe.data.too_long)
    text = Text(tokenizer, stops, pad_id(tokenizer, stops), renderer)
    if recipe.data.eval is not None:
        text.held_out = read_rows(recipe.data.eval, "eval")
        text.fingerprints["eval"] = text.held_out.fingerprint
    if training:
        rows = read_rows(recipe.data.train, "train")
        text.fingerprints["train"] = rows.fingerprint
        prepared = prepare(rows, renderer, partial(progress, "tokenizing rows"))
        prepared.report.check(recipe.data.allow_empty_targets, recipe.data.too_long)
        text.train, text.report = prepared.encoded, prepared.report
        if recipe.train.eval_every is not None and not text.held_out_encoded(recipe.eval.limit):
            raise DataError("data.eval: no held-out row has a token to score within train.max_length")
    return text


def train_data(recipe: Recipe, text: Text, world: int = 1, rank: int = 0) -> TrainData:
    """The training rows cut into steps, for process `rank` of `world`."""
    settings = recipe.train
    return TrainData(
        text.train,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation,
        max_length=settings.max_length,
        packing=settings.packing,
        seed=settings.seed,
        pad_id=text.pad_id,
        world=world,
        rank=rank,
    )
