"""text: raw documents, every token learnt."""

from __future__ import annotations

from lrft.data.example import Example, Row
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig
from lrft.registry.json import Json

ASIDE = (
    "id",
    "url",
    "source",
    "meta",
    "metadata",
    "timestamp",
    "date",
)  # columns that say where a text is from


@FORMATS.register
class Text(Format):
    """Raw text, for continued pretraining.

        {"text": "Once upon a time ..."}

    Columns: `column` (text).
    Text: the column as it is.
    Learnt: every token but the first, and an end-of-text token.
    """

    aliases = {
        "raw raw_text completion plain plain_text corpus documents pretrain pretraining pt "
        "language_modeling text_completion": "format: text",
    }

    provides = {"documents"}

    class Config(FormatConfig):
        column: str = Field("text", min_length=1, description="column of the text")

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        # Beside a text that is all there is to learn stands nothing that says more, such as a label.
        return {} if isinstance(row.get("text"), str) and row.keys() <= {"text", *ASIDE} else None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    def asked(self, row: Row) -> Example:
        """The text so far; what goes on from it is still to come."""
        return Example(prompt=self.text(row, self.config.column))

    def example(self, row: Row) -> Example:
        return Example(completion=self.text(row, self.config.column))
