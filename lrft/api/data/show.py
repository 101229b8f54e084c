"""`lrft data show`: what is learnt of the rows, and how they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from lrft.build.dataset import read_renderer, read_text
from lrft.build.guess import with_format
from lrft.build.rows import both_splits, held_out_rows, training_rows
from lrft.build.steps import train_data
from lrft.build.text import Text
from lrft.core.notes import say
from lrft.data.encoded import Encoded
from lrft.data.example import Row
from lrft.data.formats._each import OfEachRow
from lrft.data.labels import name_of
from lrft.data.layout import Packed, packed_rows
from lrft.data.removal import removal_facts
from lrft.data.rows import Rows, placed
from lrft.data.show import masked_ids, masked_text, part_names, runs, spans, with_label
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError, UsageError
from lrft.registry.protocols import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text as RichText

SplitName = Literal["train", "eval"]


class Segment(TypedDict, total=False):
    """A run of text that is learnt or not; of a row of several texts, in which."""

    answer: str
    text: str
    learnt: bool
    ids: list[int]


class RowRecord(TypedDict):
    """A row as plain values."""

    where: str
    tokens: int
    learnt: int
    truncated: bool
    dropped: bool
    segments: list[Segment]
    label: NotRequired[str]
    format: NotRequired[str]


@dataclass(frozen=True)
class ShownRow:
    """A row as the model will see it.

    Attributes:
        where: file and line it came from.
        encoded: its tokens, and which of them are learnt.
        labels: of the score head, where the model has one.
        format: of the row, where not all are of one.
    """

    where: str
    encoded: Encoded
    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    format: str | None = None

    @property
    def label(self) -> str | None:
        """What the whole row is to be given; None where tokens are learnt."""
        label = self.encoded.label
        if label is None or not self.encoded.parts:
            return None if label is None else name_of(label, self.labels)
        return f"chosen, by a margin of {label:g}" if label else "chosen"

    def record(self, ids: bool = False) -> RowRecord:
        """Plain values; the text of a pair says of which answer it is.

        Args:
            ids: with the token ids of every segment.
        """
        encoded = self.encoded
        segments: list[Segment] = []
        for number, document in enumerate(encoded.documents()):
            texts = zip(spans(document, self.tokenizer), runs(document), strict=True)
            for (text, learnt), (tokens, _) in texts:
                segment: Segment = {"answer": part_names(encoded)[number]} if encoded.parts else {}
                segments.append(
                    {**segment, "text": text, "learnt": learnt, **({"ids": tokens} if ids else {})}
                )
        found: RowRecord = {
            "where": self.where,
            "tokens": encoded.length,
            "learnt": encoded.targets,
            "truncated": encoded.truncated,
            "dropped": encoded.dropped,
            "segments": segments,
        }
        if self.format is not None:
            found["format"] = self.format
        return found if self.label is None else {**found, "label": self.label}

    def heading(self) -> str:
        """Where it stands, and what becomes of it."""
        learnt = f"{self.encoded.targets if self.label is None else 'the label'} learnt"
        if self.encoded.embedded:
            learnt = f"{self.encoded.targets} texts embedded"
        state = f"{self.encoded.length} tokens, {learnt}"
        state += "" if self.format is None else f", format {self.format}"
        return f"{self.where}: {'dropped' if self.encoded.dropped else state}"

    def text(self, coloured: bool) -> RichText:
        """Its text with what is learnt marked, as `rich` prints it."""
        return self._labelled(masked_text(self.encoded, self.tokenizer, coloured), coloured)

    def ids(self, coloured: bool) -> RichText:
        """Its token ids, marked likewise."""
        return self._labelled(masked_ids(self.encoded, coloured), coloured)

    def _labelled(self, shown: RichText, coloured: bool) -> RichText:
        return shown if self.label is None else with_label(shown, self.label, coloured)


def show_rows(
    recipe: LoadedRecipe | Path | str,
    rows: int = 3,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
    split: SplitName = "train",
    places: Sequence[str] = (),
) -> list[ShownRow]:
    """Rows through the recipe's tokenizer and format: the first ones, of several sources of each, or those at places.

    Args:
        places: lines of the file, numbers of rows where there are no lines, or `FILE:LINE`, as a report names them;
            by default the first `rows`.

    Raises:
        RecipeError, DataError: the recipe is not valid, or the rows cannot be read or rendered.
        UsageError: there is no row at a place.
    """
    chosen = with_format(as_loaded(recipe, overrides)).recipe
    text = read_renderer(chosen, trust_remote_code)
    held = _read(chosen, split, None if places else rows)
    indices = _indices(held, places) if places else range(len(held))
    return [
        ShownRow(held.where(i), encoded, text.tokenizer, text.renderer.labels, _format_of(text, held[i]))
        for i in indices
        for encoded in _encoded(text, held, i)
    ]


def _format_of(text: Text, row: Row) -> str | None:
    """The format of a row, where not all rows are of one."""
    form = text.renderer.format
    return form.of(row).name if isinstance(form, OfEachRow) else None


def _read(recipe: Recipe, split: SplitName, first: int | None) -> Rows:
    if split == "train" and (recipe.data.dedup is not None or recipe.data.drop_overlap):
        found = both_splits(recipe)
        for label, value in [] if found.removed is None else removal_facts(found.removed.record()):
            say(f"{label}: {value}")
        return found.train.first(first)
    if split == "train":
        return training_rows(recipe, first)
    held_out = held_out_rows(recipe)
    if held_out is None:
        raise RecipeError("the recipe names no held-out rows", "data.eval")
    return held_out.first(first)


def _indices(rows: Rows, places: Sequence[str]) -> list[int]:
    """The rows at these places, in the order in which they are asked for.

    Raises:
        UsageError: there is none at one of them.
    """
    known = [rows.where(index) for index in range(len(rows))]
    found = []
    for place in places:
        here = [
            k
            for k, where in enumerate(known)
            if where == place or where.endswith((f":{place}", f" row {place}"))
        ]
        here = here or [k for k, where in enumerate(known) if where.endswith(f"/{place}")]
        if not here:
            raise UsageError(f"--at {place}: no row stands there; rows are {known[0]} to {known[-1]}")
        found += here
    return found


def _encoded(text: Text, rows: Rows, index: int) -> list[Encoded]:
    with placed(rows, index):
        return text.renderer.encodings(rows[index])


def show_packed(
    recipe: LoadedRecipe | Path | str,
    rows: int = 3,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
) -> Packed:
    """The layout of the first `rows` packed rows that training sees, where its model packs.

    Raises:
        RecipeError, DataError: the recipe is not valid or does not pack, or its rows cannot be read or packed.
    """
    chosen = with_format(as_loaded(recipe, overrides)).recipe
    if chosen.train.packing is False:
        raise RecipeError(
            "it is false, so no row holds several documents; remove it to see how they would be packed",
            "train.packing",
        )
    with EvaluationBar() as show:
        text = read_text(chosen, trust_remote_code=trust_remote_code, progress=show)
    assert text.rows is not None, "training rows were wanted"
    return packed_rows(train_data(chosen, text, packing=True), text.rows, rows)
