"""`lrft data`: what is learnt of the training rows, and whether the data can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lrft.build.dataset import read_rendered, read_text
from lrft.build.guess import with_format
from lrft.build.rows import training_rows
from lrft.build.text import Text
from lrft.data.encoded import Encoded
from lrft.data.show import masked_text, spans
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.registry.protocols import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text as RichText


class Segment(TypedDict, total=False):
    """A run of text that is learnt or not; of a pair, in which answer."""

    answer: str
    text: str
    learnt: bool


class RowRecord(TypedDict):
    """A row as plain values."""

    where: str
    tokens: int
    learnt: int
    truncated: bool
    dropped: bool
    segments: list[Segment]


@dataclass(frozen=True)
class ShownRow:
    """A training row as the model will see it.

    Attributes:
        where: file and line it came from.
        encoded: its tokens, and which of them are learnt.
    """

    where: str
    encoded: Encoded
    tokenizer: Tokenizer

    def record(self) -> RowRecord:
        """Plain values; the text of a pair says of which answer it is."""
        encoded = self.encoded
        answers: tuple[Segment, ...] = (
            ({"answer": "chosen"}, {"answer": "rejected"}) if encoded.parts else ({},)
        )
        return {
            "where": self.where,
            "tokens": encoded.length,
            "learnt": encoded.targets,
            "truncated": encoded.truncated,
            "dropped": encoded.dropped,
            "segments": [
                {**answer, "text": text, "learnt": learnt}
                for answer, document in zip(answers, encoded.documents(), strict=True)
                for text, learnt in spans(document, self.tokenizer)
            ],
        }

    def heading(self) -> str:
        """Where it stands, and what becomes of it."""
        state = f"{self.encoded.length} tokens, {self.encoded.targets} learnt"
        return f"{self.where}: {'dropped' if self.encoded.dropped else state}"

    def text(self, coloured: bool) -> RichText:
        """Its text with what is learnt marked, as `rich` prints it."""
        return masked_text(self.encoded, self.tokenizer, coloured)


def show_rows(
    recipe: LoadedRecipe | Path | str,
    rows: int = 3,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
) -> list[ShownRow]:
    """The first `rows` training rows, of several sources of each, through the recipe's tokenizer and format.

    Raises:
        RecipeError, DataError: the recipe is not valid, or the rows cannot be read or rendered.
    """
    chosen = with_format(as_loaded(recipe, overrides)).recipe
    with EvaluationBar() as show:
        prepared, tokenizer = read_rendered(chosen, training_rows(chosen, rows), trust_remote_code, show)
    return [ShownRow(prepared.rows.where(i), row, tokenizer) for i, row in enumerate(prepared.encoded)]


def check_data(
    recipe: LoadedRecipe | Path | str, trust_remote_code: bool = False, *, overrides: Sequence[str] = ()
) -> Text:
    """Both splits of a recipe's data, read and judged as training judges them.

    `lrft.build.dataset.check_text` refuses what the report says cannot be trained on.

    Raises:
        RecipeError, DataError: the recipe is not valid, or the rows cannot be read or rendered.
    """
    with EvaluationBar() as show:
        chosen = with_format(as_loaded(recipe, overrides)).recipe
        return read_text(chosen, trust_remote_code=trust_remote_code, progress=show)
