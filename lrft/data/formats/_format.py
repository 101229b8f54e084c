"""`Format`: how a row becomes an `Example`. A format is one file in this folder."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import ValidationError

from lrft.data.encoded import Notes
from lrft.data.example import Example, Message, Row
from lrft.data.formats._conversation import asked, open_question, with_system
from lrft.data.formats._turns import tools_of
from lrft.registry.axes import FORMATS
from lrft.registry.config import FormatConfig
from lrft.registry.errors import DataError
from lrft.registry.json import Json

# Columns that change what a row says; others, such as an id or a source, are only told.
MEANT = frozenset(
    (
        "tools",
        "functions",
        "system",
        "history",
        "documents",
        "image",
        "images",
        "audio",
        "audios",
        "video",
        "videos",
        "weight",
    )
)


class Format:
    """Subclasses give `columns`, `optional` and `example`; errors leave out which row it was, the caller knows.

    A format of pairs provides `pairs`, and every example it makes has a `rejected` one.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[FormatConfig]] = FormatConfig

    def __init__(self, config: FormatConfig) -> None:
        self.config = config
        self.own_tools = tools_of(config.tools, "data.format.tools") if config.tools else ()

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        """The settings with which the row is of this format by its columns alone; None where they do not say so."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns every row must have."""
        raise NotImplementedError(f"{type(self).__name__} declares no columns")

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the columns that are read where a row has them."""
        return ()

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of those of the columns that hold an answer, which a row that only asks may lack."""
        return ()

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of the columns that a row needs to ask something."""
        return tuple(name for name in self.columns if name not in self.answers)

    def asked(self, row: Row) -> Example:
        """The row up to its last answer, which is still to come and may be missing.

        Raises:
            DataError: a column of the question is missing, or the row asks nothing.
        """
        return open_question(self.example({**row, **dict.fromkeys(self.answers, "")}))

    def asking(self, text: str) -> Row:
        """A row that asks `text`, without an answer.

        Raises:
            DataError: a question of this format is more than a text.
        """
        if len(self.questions) != 1:
            names = ", ".join(self.questions) or "none"
            raise DataError(
                f"a text is no question of the {self.name} format, which is made of {names}; give rows with these"
            )
        return {self.questions[0]: text}

    def example(self, row: Row) -> Example:
        """The row as messages, as prompt and completion, or as two of either.

        Raises:
            DataError: a column is missing, null or of the wrong type.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no example")

    def completed(self, row: Row) -> Example:
        """The row's example, with the tools of the settings where it is a conversation that brings none.

        Raises:
            DataError: as `example`; or there are tools, and nothing that they could be written in.
        """
        example = self.example(row)
        if not self.own_tools or example.tools:
            return example
        if not example.messages:
            raise DataError(
                "data.format.tools: tools are written by a chat template only; remove it, or set "
                "data.format.render: chat"
            )
        both = example.rejected and replace(example.rejected, tools=self.own_tools)
        return replace(example, tools=self.own_tools, rejected=both)

    def value(self, row: Row, column: str) -> Json:
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

    def unread(self, row: Row) -> Notes:
        """What the row holds and this format does not read: what it would have to, and what is only told."""
        left = row.keys() - {*self.columns, *self.optional, *self.config.ignore}
        names = [name for name in sorted(left) if row[name] not in (None, "", "[]", [], {})]
        meant = [name for name in names if name in MEANT and not (name == "weight" and row[name] == 1)]
        return Notes(tuple(meant), tuple(name for name in names if name not in MEANT))

    def pair(self, prompt: str, completion: str, system: str | None = None) -> Example:
        """A question and its answer, through the chat template or plain, the system message in front."""
        if getattr(self.config, "render", None) == "plain":
            return Example(prompt=f"{system}\n\n{prompt}" if system else prompt, completion=completion)
        return Example(messages=tuple(with_system(asked(prompt, completion), system)))

    def system(self, row: Row) -> str | None:
        """The row's own system message, in its column `system`, or the config's.

        Raises:
            DataError: the column holds no text.
        """
        own = None if "system" in self.config.ignore else row.get("system")
        if own is not None and not isinstance(own, str):
            raise DataError(
                f"column 'system' holds a {type(own).__name__}, the system message must be text; correct it, or write "
                "data.format.ignore: [system]"
            )
        default: str | None = getattr(self.config, "system", None)
        return own or default

    def tools(self, row: Row) -> tuple[Message, ...]:
        """What the row's column `tools`, or `functions`, offers to call.

        Raises:
            DataError: no list of tools, or two of them.
        """
        given = [name for name in ("tools", "functions") if row.get(name) and name not in self.config.ignore]
        if len(given) > 1:
            raise DataError(
                "the row has both `tools` and `functions`; remove one, or write data.format.ignore: [functions]"
            )
        return tools_of(row[given[0]], given[0]) if given else ()

    def opened(self, turns: list[Message], row: Row) -> tuple[Message, ...]:
        """The turns with the row's, or else the config's, system message in front where they bring none.

        Raises:
            DataError: the row has two system messages that differ.
        """
        own = None if "system" in self.config.ignore else row.get("system")
        brings = turns[0]["role"] in ("system", "developer")
        if own and brings and own != turns[0]["content"]:
            raise DataError(
                "the row has a system message and another one in column 'system'; remove one, or write "
                "data.format.ignore: [system]"
            )
        return tuple(turns if brings else with_system(turns, self.system(row)))

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
