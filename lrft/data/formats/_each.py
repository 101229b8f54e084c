"""A format for rows of several sources, some of which say their own."""

from __future__ import annotations

from lrft.data.encoded import Notes
from lrft.data.example import Example, OwnRow, Row
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import FormatConfig


class OfEachRow(Format):
    """The recipe's format, but for rows that bring another one. A question that no row asks is of the recipe's.

    Args:
        default: the recipe's.
        others: every other one that a row may bring; traits are those that all of them have.
    """

    def __init__(self, default: Format, others: list[FormatConfig]) -> None:
        super().__init__(default.config)
        self.default = default
        self.name = default.name  # type: ignore[misc]  # of the class where a class is one format
        self.others: list[tuple[FormatConfig, Format]] = [
            (config, FORMATS.get(config.method)(config)) for config in others
        ]
        traits = [default.provides, *(form.provides for _, form in self.others)]
        self.provides = set.intersection(*map(set, traits))  # type: ignore[misc]

    def of(self, row: Row) -> Format:
        """The format of a row."""
        if not isinstance(row, OwnRow):
            return self.default
        return next(form for config, form in self.others if config == row.format)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.default.columns

    @property
    def optional(self) -> tuple[str, ...]:
        return self.default.optional

    @property
    def answers(self) -> tuple[str, ...]:
        return self.default.answers

    @property
    def questions(self) -> tuple[str, ...]:
        return self.default.questions

    def asked(self, row: Row) -> Example:
        return self.of(row).asked(row)

    def asking(self, text: str) -> Row:
        return self.default.asking(text)

    def example(self, row: Row) -> Example:
        return self.of(row).example(row)

    def completed(self, row: Row) -> Example:
        return self.of(row).completed(row)

    def unread(self, row: Row) -> Notes:
        return self.of(row).unread(row)
