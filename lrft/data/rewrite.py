"""Rows that a model is asked to write from other rows: the question, and what of an answer becomes a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter

from lrft.data.example import OwnRow, Row, with_columns
from lrft.data.formats._format import Format
from lrft.registry.errors import DataError, UsageError
from lrft.registry.json import parse_text

COLUMN = "augmented"  # of a row that was written: what it was written from
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)

Refused = str
"""Why an answer is no row, in a word or two that are counted."""


@dataclass(frozen=True)
class Rewriting:
    """How rows become questions, and answers rows.

    Attributes:
        template: of the question; `{question}` is the column `question`, and a literal brace is doubled.
        into: column whose text the answer replaces; None where the answer is a whole row, as a JSON object.
        form: of the rows; what it cannot read is no row.
    """

    template: str
    into: str | None
    form: Format

    def check(self) -> None:
        """Refuse a template that no row fills, and that would ask the same of every row.

        Raises:
            UsageError: says what is wrong with it.
        """
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise UsageError(
                f"--prompt: is no template ({error}); double a literal brace: {{{{ or }}}}"
            ) from None
        names = [name for _, name, _, _ in parts if name is not None]
        if any(not re.fullmatch(r"[^\W\d]\w*", name) for name in names) or any(p[2] or p[3] for p in parts):
            raise UsageError("--prompt: may hold only column names in braces, such as {question}")
        if not names:
            raise UsageError(
                "--prompt: names no column, so every row would ask the same; write {question} or so"
            )

    def question(self, row: Row) -> str:
        """What is asked about a row.

        Raises:
            DataError: it lacks a column, or that holds no text.
        """
        names = {name for _, name, _, _ in Formatter().parse(self.template) if name}
        filled = {}
        for name in sorted(names | ({self.into} if self.into else set())):
            value = row.get(name)
            if not isinstance(value, str | int | float) or (name == self.into and not isinstance(value, str)):
                raise DataError(
                    f"column {name!r} holds no text, and is asked for; the row has {', '.join(row)}"
                )
            filled[name] = str(value)
        return self.template.format_map(filled)

    def written(self, row: Row, answer: str, about: Row) -> Row | Refused:
        """The row that an answer makes of another one, or why it makes none; white space around a text stays."""
        text = answer.strip()
        if not text:
            return "empty"
        if self.into is None:
            made = _read(text)
            if made is None:
                return "no JSON object"
        else:
            old = str(row[self.into])
            if text == old.strip():
                return "unchanged"
            front, back = old[: len(old) - len(old.lstrip())], old[len(old.rstrip()) :]
            made = {**row, self.into: f"{front}{text}{back}"}
        made = {**made, COLUMN: about}
        try:
            self.form.example(with_columns(row, made) if isinstance(row, OwnRow) else made)
        except DataError:
            return "no row of the format"
        return made


def _read(text: str) -> Row | None:
    """The object that an answer is, alone or within a fence."""
    fenced = FENCE.match(text)
    try:
        found = parse_text(fenced[1] if fenced else text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found else None
