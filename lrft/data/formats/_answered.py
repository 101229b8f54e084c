"""A format whose rows have a prompt in one column and an answer to it in another, as text or as messages."""

from __future__ import annotations

from lrft.data.example import Example, Message, Row
from lrft.data.formats._conversation import open_question
from lrft.data.formats._format import Format
from lrft.data.formats._turns import turns_of
from lrft.registry.errors import DataError

Turns = list[Message]


class Answered(Format):
    """Subclasses say which columns these are."""

    def conversation(self, row: Row, prompt: str, column: str) -> tuple[Message, ...]:
        """Every turn through the answer in `column`, which begins with the prompt or goes on from it."""
        turns = self.turns(row, column)
        if turns[0]["role"] == "assistant":
            turns = self.asked_with(row, prompt) + turns
        if turns[-1]["role"] != "assistant":
            raise DataError(
                f"column {column!r} ends in a message of role {turns[-1]['role']}; the last one must be an answer, "
                "of role assistant"
            )
        return self.opened(turns, row)

    def asked_in_messages(self, row: Row, prompt: str) -> Example | None:
        """The row up to its answer, where that or its prompt is messages, as it is trained then; else None."""
        answer = next((name for name in self.answers if isinstance(row.get(name), list)), None)
        if answer is not None:
            turns = self.conversation(row, prompt, answer)
        elif isinstance(row.get(prompt), list):
            turns = self.opened(self.turns(row, prompt), row)
        else:
            return None
        return open_question(Example(messages=turns, tools=self.tools(row)))

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

    def asked_with(self, row: Row, prompt: str) -> Turns:
        """The turns of a prompt: those it holds, or its text as a question."""
        if isinstance(self.value(row, prompt), list):
            return self.turns(row, prompt)
        return [{"role": "user", "content": self.text(row, prompt)}]

    def turns(self, row: Row, column: str) -> Turns:
        """The turns that a column holds.

        Raises:
            DataError: it is no list of messages; names the column.
        """
        try:
            return turns_of(row[column], column, self.config.ignore)
        except DataError as error:
            raise DataError(f"column {column!r}: {error}") from None
