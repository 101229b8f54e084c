"""`lrft data check`: whether the data can be trained on, and what somebody should know of it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.text import Text
from lrft.core.garbage import sought_rarely
from lrft.data import alike, asked
from lrft.data.alike import Alike, Split
from lrft.data.asked import Asked
from lrft.data.lengths import Lengths
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.registry.json import Json


@dataclass(frozen=True)
class DataCheck:
    """What `lrft data check` finds: the gate's counts, and what no gate stops but somebody should know.

    Attributes:
        text: both splits, with the gate's counts.
        lengths, held_out_lengths: of the rows of either split.
        alike: rows that nearly repeat others.
        asked: whether prompts as generated are those that were trained after.
    """

    text: Text
    lengths: Lengths
    held_out_lengths: Lengths | None
    alike: Alike
    asked: Asked

    def record(self) -> dict[str, Json]:
        """Plain values: those of the gate, and the others beside them."""
        return {
            **self.text.record(),
            "lengths": self.lengths.record(),
            "held_out_lengths": None if self.held_out_lengths is None else self.held_out_lengths.record(),
            **self.alike.record(),
            **self.asked.record(),
        }

    def facts(self) -> list[tuple[str, str]]:
        """A line a fact, for people."""
        return [*self.text.facts(), *self.lengths.facts(), *self.alike.facts(), *self.asked.facts()]


def check_data(
    recipe: LoadedRecipe | Path | str,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
    processes: int = 1,
) -> DataCheck:
    """Both splits of a recipe's data, read and judged as training judges them, and compared with each other.

    `lrft.build.dataset.check_text` refuses what the report says cannot be trained on.

    Args:
        processes: that make tokens of rows; the result is the same with any number.

    Raises:
        RecipeError, DataError: the recipe is not valid, or the rows cannot be read or rendered.
    """
    with EvaluationBar() as show, sought_rarely():
        chosen = with_format(as_loaded(recipe, overrides)).recipe
        text = read_text(chosen, trust_remote_code=trust_remote_code, progress=show, processes=processes)
        assert text.rows is not None, "training rows were wanted"
        train = Split(text.rows, text.train)
        held_out = None if text.scored_rows is None else Split(text.scored_rows, text.scored or [])
        return DataCheck(
            text,
            Lengths.of([row.length for row in text.train]),
            None if held_out is None else Lengths.of([row.length for row in held_out.encoded]),
            alike.compare(text.renderer.format, train, held_out, partial(show, "comparing rows")),
            asked.compare(text.renderer, train, partial(show, "comparing prompts")),
        )
