"""`Format`: how a row becomes an `Example`. A format is one file in this folder."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ValidationError

from lrft.core.axes import FORMATS
from lrft.core.config import MethodConfig
from lrft.core.errors import DataError
from lrft.data.example import Example

Row = dict[str, Any]


class Format:
    """Subclasses give `columns` and `example`; errors leave out which row it was, the caller knows.

    A format of pairs provides `pairs`, and every example it makes has a `rejected` one.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns every row must have."""
        raise NotImplementedError(f"{type(self).__name__} declares no columns")

    def example(self, row: Row) -> Example:
        """The row as messages, as prompt and completion, or as two of either.

        Raises:
            DataError: a column is missing, null or of the wrong type.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no example")

    def value(self, row: Row, column: str) -> Any:
        """What the row holds in `column`, never null."""
        if column not in row:
            raise DataError(self._missing(row, column))
        if row[column] is None:
            raise DataError(f"column {column!r} is null; the {self.name} format needs it in every row")
        return row[column]

    def text(self, row: Row, column: str) -> str:
        """Like `value`, as text; numbers and booleans are written out."""
        value = self.value(row, column)
        if isinstance(value, str | int | float):
            return str(value)
        hint = "; the chat format reads lists of messages" if isinstance(value, list) else ""
        raise DataError(
            f"column {column!r} holds a {type(value).__name__}, the {self.name} format needs text{hint}"
        )

    def pair(self, prompt: str, completion: str) -> Example:
        """A question and its answer, through the chat template or plain, the config's `system` in front."""
        system: str | None = self.config.system
        if self.config.render == "plain":
            return Example(prompt=f"{system}\n\n{prompt}" if system else prompt, completion=completion)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return Example(messages=tuple(with_system(turns, system)))

    def _missing(self, row: Row, column: str) -> str:
        fitting = [name for name in fitting_formats(set(row)) if name != self.name]
        names = ", ".join(sorted(row)) or "none"
        remedy = (
            f"data.format: {' or '.join(fitting)} would fit"
            if fitting
            else "data.format: columns takes any column by template, such as prompt: '{"
            + min(row, default="name")
            + "}'"
        )
        return f"the {self.name} format needs column {column!r}, the row has {names}; {remedy}"


def with_system(turns: list[dict[str, str]], system: str | None) -> list[dict[str, str]]:
    """The turns with a system message in front, unless there is none to add or the row brings its own."""
    if system is None or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def fitting_formats(columns: set[str]) -> list[str]:
    """Formats whose default settings find all they need in `columns`."""
    found = []
    for name in FORMATS.names():
        try:
            config = FORMATS.declared(name).config(method=name)
        except ValidationError:  # no defaults: it has to be told its columns
            continue
        if columns.issuperset(FORMATS.get(name)(config).columns):
            found.append(name)
    return found
