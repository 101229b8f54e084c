"""A conversation put together, and cut where its last answer is still to come."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Message
from lrft.registry.errors import DataError

# What every conversation may have beside its messages.
CONVERSATION = ("tools", "functions", "system")


def open_question(example: Example) -> Example:
    """The example up to its last answer.

    Raises:
        DataError: a conversation with nothing before the answer.
    """
    turns = example.messages
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if example.messages and not turns:
        raise DataError("the conversation has no message before its answer, so nothing is asked")
    return replace(example, messages=turns, completion="", rejected=None)


def asked(question: str, answer: str) -> list[Message]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_system(turns: list[Message], system: str | None) -> list[Message]:
    """The turns with a system message in front, unless there is none to add."""
    if system is None:
        return turns
    return [{"role": "system", "content": system}, *turns]
