"""A format whose rows have a prompt in one column and an answer to it in another, as text or as messages."""

from __future__ import annotations

from lrft.data.example import Example, Message, Row
from lrft.data.formats._format import Format
from lrft.data.formats._turns import turns_of
from lrft.registry.errors import DataError

Turns = list[Message]


class Answered(Format):
    """Subclasses say which columns these are."""

    def conversation(self, row: Row, prompt: str, column: str) -> tuple[Message, ...]:
        """Every turn through the answer in `column`, which begins with the prompt or goes on from it."""
        turns = self._turns(row, column)
        if turns[0]["role"] == "assistant":
            turns = self._asked(row, prompt) + turns
        if turns[-1]["role"] != "assistant":
            raise DataError(
                f"column {column!r} ends in a message of role {turns[-1]['role']}; the last one must be an answer, "
                "of role assistant"
            )
        return self.opened(turns, row)

    def tools_beside(self, example: Example, row: Row) -> tuple[Message, ...]:
        """The tools that the row offers to an example made of it.

        Raises:
            DataError: it is plain text, in which nothing writes them; or as `tools`.
        """
        tools = self.tools(row)
        if tools and not example.messages:
            raise DataError(
                "the tools of the row are written by a chat template only; set data.format.render: chat, or "
                "data.format.ignore: [tools]"
            )
        return tools

    def _asked(self, row: Row, prompt: str) -> Turns:
        if isinstance(self.value(row, prompt), list):
            return self._turns(row, prompt)
        return [{"role": "user", "content": self.text(row, prompt)}]

    def _turns(self, row: Row, column: str) -> Turns:
        try:
            return turns_of(row[column], column, self.config.ignore)
        except DataError as error:
            raise DataError(f"column {column!r}: {error}") from None
