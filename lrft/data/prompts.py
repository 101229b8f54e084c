"""Prompts without answers, asked as the run was taught: by its format and its chat template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrft.data.example import Example, OwnRow, Row
from lrft.data.formats._conversation import open_question
from lrft.data.formats._each import OfEachRow
from lrft.data.formats._turns import turns_of
from lrft.data.rows import Rows, placed
from lrft.data.sources import read_rows
from lrft.data.text_lines import fail, lines_of
from lrft.data.tokenize import Renderer
from lrft.registry.config import Source
from lrft.registry.errors import DataError
from lrft.registry.source import READABLE

MESSAGES, PROMPT = "messages", "prompt"  # columns that are read whatever the format of the run


class Asker:
    """Makes the tokens of a prompt.

    Args:
        renderer: of the run; its format and chat template are what the model was trained with.
        sample: a row the run was trained or scored on, which shows whether its answers are thought for, and whether
            rows that a format reads as text or as messages are messages; None where there is none.
    """

    def __init__(self, renderer: Renderer, sample: Row | None = None) -> None:
        self.renderer = renderer
        self.at_once = sample is not None and bool(renderer.question(sample).given)
        form = renderer.format
        # Of sources of several formats, a question that no row asks is of the recipe's.
        default = form.default if isinstance(form, OfEachRow) else form
        own = sample is not None and (default is form or not isinstance(sample, OwnRow))
        self.in_messages = own and bool(default.completed(sample or {}).messages)

    def ids(self, example: Example) -> list[int]:
        """Token ids of an example whose answer is still to come.

        Raises:
            DataError: the chat template cannot write it.
        """
        own = self.renderer.format.own_tools
        if own and example.messages and not example.tools:
            example = replace(example, tools=own)
        return self.renderer.asked(example, self.at_once)

    def said(self, example: Example, answer: str) -> str:
        """The content of a message that the chat template writes as an answer was generated.

        That is the answer, or where the template itself writes white space between the prompt and the words, the answer
        without it: with both, what the model said stood otherwise in the next prompt than in any row.
        """
        template, bare = self.renderer.template, answer.lstrip()
        if bare == answer or not bare or not example.messages:
            return answer
        tools = example.tools or self.renderer.format.own_tools
        try:
            whole = template.render(example.messages, tools, prompt=True) + answer.rstrip()
            as_it_is, without = (
                template.render([*example.messages, {"role": "assistant", "content": content}], tools)
                for content in (answer, bare)
            )
        except DataError:
            return answer
        return bare if without.startswith(whole) and not as_it_is.startswith(whole) else answer

    def text(self, text: str) -> Example:
        """A text, asked as the run's format asks."""
        form = self.renderer.format
        return self._as_learnt(form.asked(form.asking(text)), text, {})

    def _as_learnt(self, example: Example, text: str, row: Row) -> Example:
        """A text as a user's message, where the rows that were learnt were messages."""
        form = self.renderer.format
        if example.messages or not self.in_messages or len(form.questions) != 1 or not text:
            return example
        return Example(messages=form.opened([{"role": "user", "content": text}], row), tools=form.tools(row))

    def row(self, row: Row) -> Example:
        """A row of the run's own format, or one that holds `messages` or `prompt`; answers may be missing.

        Raises:
            DataError: it is none of these.
        """
        form = self.renderer.format
        asks = row.keys() >= {*form.questions} or row.keys() >= {
            *form.columns
        }  # answers may hold what they answer
        if asks and form.questions:
            said = row.get(form.questions[0])
            return self._as_learnt(form.asked(row), said if isinstance(said, str) else "", row)
        if MESSAGES in row:
            turns = form.opened(turns_of(row[MESSAGES], MESSAGES, form.config.ignore), row)
            return open_question(Example(messages=turns, tools=form.tools(row)))
        if isinstance(text := row.get(PROMPT), str):
            return self.text(text)
        raise DataError(
            f"the row has {', '.join(sorted(row))}; a prompt has `{MESSAGES}`, a list, or `{PROMPT}`, a text, or what "
            f"the run's {form.name} format asks with: {', '.join(form.questions)}"
        )


def read_prompts(path: Path, asker: Asker) -> tuple[Rows, list[Example]]:
    """The prompts of a file: every line of a .txt, every row of any other kind that data may have.

    Raises:
        DataError: nothing there, malformed, or a prompt that cannot be asked, by file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of prompts")
    is_text = path.suffix == ".txt"
    if not is_text and not path.name.endswith(READABLE):
        raise DataError(f"{path}: prompts are read from files that end in {', '.join(READABLE)}")
    rows = _read_lines(path) if is_text else read_rows(Source(source=str(path)), "eval")
    made = []
    for index, row in enumerate(rows):
        with placed(rows, index):
            made.append(asker.text(str(row[PROMPT])) if is_text else asker.row(row))
    return rows, made


def _read_lines(path: Path) -> Rows:
    found: list[Row] = []
    for number, line in enumerate(lines_of(path), 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            fail(path, number, "the line is empty; every line is a prompt, so remove it")
        found.append({PROMPT: text})
    if not found:
        fail(path, 1, "the file has no prompts")
    return Rows(found, str(path), "", list(range(1, len(found) + 1)))
