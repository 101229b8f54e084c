"""Inputs of a task that a model is asked for by a few examples: the question, and what of an answer is an input."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lrft.data.example import Example, Row
from lrft.data.formats._conversation import CONVERSATION
from lrft.data.formats._format import Format
from lrft.registry.errors import DataError, UsageError
from lrft.registry.json import parse_text

SYSTEM = "system"
# What stands before an input and before an output; the first pair that no example holds.
MARKS = (("Input:", "Output:"), ("Question:", "Answer:"), ("### Input", "### Output"))
ASK = (
    "Here are examples of a task, each with its input and its output.\n\n{examples}\n\n"
    "Write one more input of the same task, unlike these. Write the input alone."
)
SHOWN = "{examples}"  # of a template, where the examples go

Refused = str
"""Why an answer is no input, in a word or two that are counted."""


@dataclass(frozen=True)
class FewShot:
    """A task as a few of its rows show it.

    Attributes:
        form: of the rows.
        seeds: the examples, of which each has an output.
        template: of the question, with `{examples}`; None for the words that stand here.
    """

    form: Format
    seeds: Sequence[Row]
    template: str | None = None

    def check(self) -> None:
        """Refuse what no input can be written for, or made of.

        Raises:
            DataError: of the rows.
            UsageError: of the template.
        """
        if not self.seeds:
            raise DataError("there is no seed; a few rows have to show what the task is")
        if self.template is not None and self.template.count(SHOWN) != 1:
            raise UsageError(f"--prompt: has to hold {SHOWN} once, where the seeds are shown")
        if len({self._system(row) for row in self.seeds}) > 1:
            raise DataError("the seeds have different system messages; give seeds that share one")
        for row in self.seeds:
            if any(row.get(name) for name in CONVERSATION if name != SYSTEM) or row.get("history"):
                raise DataError(
                    "a seed brings tools or earlier turns, which no input is written for; give others"
                )
            if not self.output(row):
                raise DataError("a seed has no output; give rows that are answered")
            if self.row(self.text(row)) is None:
                raise DataError("a seed's input cannot be written as a text and read back; give others")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Those that make an input: what the format asks with, and what it may read beside it where a seed has it."""
        beside = [name for name in self.form.optional if name not in CONVERSATION and name != "history"]
        found = [name for name in beside if any(row.get(name) for row in self.seeds)]
        return (*self.form.questions, *found)

    @cached_property
    def marks(self) -> tuple[str, str]:
        """What stands before inputs and outputs.

        Raises:
            DataError: the seeds hold all that might.
        """
        texts = [text for row in self.seeds for text in (self.text(row), self.output(row))]
        for pair in MARKS:
            if not any(mark in text for mark in pair for text in texts):
                return pair
        raise DataError(
            f"the seeds hold {MARKS[0][0]}, {MARKS[1][0]} and {MARKS[2][0]} themselves; give others"
        )

    def text(self, row: Row) -> str:
        """The input of a row: the text of its one column, the user's one message, or several columns as JSON.

        Raises:
            DataError: it is none of these.
        """
        if len(self.columns) != 1:
            return json.dumps({name: self._column(row, name) for name in self.columns}, ensure_ascii=False)
        value = self.form.value(row, self.columns[0])
        if not isinstance(value, list):
            return self.form.text(row, self.columns[0]).strip()
        turns = [turn for turn in self.form.asked(row).messages if turn["role"] not in (SYSTEM, "developer")]
        if len(turns) != 1 or turns[0]["role"] != "user" or not isinstance(turns[0]["content"], str):
            raise DataError("an input is one message of a user, and this conversation has more, or none")
        return turns[0]["content"].strip()

    def output(self, row: Row) -> str:
        """The answer of a row; empty where it has none."""
        example = self.form.example(row)
        if not example.messages:
            return example.completion.strip()
        last = example.messages[-1]
        return str(last.get("content") or "").strip() if last["role"] == "assistant" else ""

    def row(self, text: str) -> Row | None:
        """The row that asks with an input; None of a text that is none."""
        system = self._system(self.seeds[0])
        with_it: Row = {} if system is None else {SYSTEM: system}
        if len(self.columns) == 1:
            return {**with_it, **self.form.asking(text)}
        try:
            found = parse_text(text)
        except ValueError:
            return None
        whole = isinstance(found, dict) and found.keys() == set(self.columns)
        if not whole or not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            return None
        return {**with_it, **found}

    def order(self, seed: int, number: int) -> list[int]:
        """In which order the seeds are shown for a candidate: drawn from its number alone."""
        places = list(range(len(self.seeds)))
        random.Random(f"{seed}-{number}").shuffle(places)
        return places

    def question(self, order: Sequence[int], asks: bool) -> str:
        """What is asked.

        Args:
            asks: the model takes a message; else it goes on with the text.
        """
        before, after = self.marks
        pairs = [(self.text(self.seeds[k]), self.output(self.seeds[k])) for k in order]
        shown = "\n\n".join(f"{before} {given}\n{after} {answer}" for given, answer in pairs)
        if self.template is not None:
            return self.template.replace(SHOWN, shown)
        return ASK.replace(SHOWN, shown) if asks else f"{shown}\n\n{before}"

    def written(self, answer: str, stopped: bool) -> tuple[str, Refused]:
        """The input that an answer holds, up to where it would go on with an output, and why it is none, or nothing."""
        before, after = self.marks
        text = answer.strip().removeprefix(before)
        end = re.search(rf"(?:^|\n)\s*({re.escape(before)}|{re.escape(after)})", text)
        if end is None and not stopped:
            return text.strip(), "cut off"
        text = text[: end.start()].strip() if end else text.strip()
        if not text:
            return text, "empty"
        made = self.row(text)
        return (text, "no row of the format") if made is None else (self.text(made), "")

    def _column(self, row: Row, name: str) -> str:
        return self.form.text(row, name) if row.get(name) is not None else ""

    def _system(self, row: Row) -> str | None:
        """The system message that the row itself brings."""
        if isinstance(given := row.get(SYSTEM), str):
            return given
        value = row.get(self.form.questions[0]) if self.form.questions else None
        if not isinstance(value, list):
            return None
        first = self.form.asked(row).messages[0]
        own = (
            first["role"] in (SYSTEM, "developer")
            and getattr(self.form.config, SYSTEM, None) != first["content"]
        )
        return str(first["content"]) if own else None


def folded(text: str) -> str:
    """A text as it is compared with others: white space is one space, and case does not count."""
    return " ".join(text.split()).casefold()


def answered(example: Example, output: str) -> Row:
    """A row that holds an example with its answer, whatever the format that it was of: messages, or two texts."""
    if example.messages:
        return {"messages": [*example.messages, {"role": "assistant", "content": output}]}
    return {"prompt": example.prompt, "completion": output}
