"""Solutions that correct themselves, as texts: the program of an answer, what it printed, and what is concluded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lrft.core.written import NUMBER, last_number, same_text, value_of

PROGRAM = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)\n?```", re.DOTALL)
ANSWER = re.compile(r"^[ \t]*Answer:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """A program, what came of it, and what its author says of that.

    Attributes:
        program: the answer up to the end of its first fenced block.
    """

    program: str
    printed: str
    verified: str

    def text(self) -> str:
        """All three, one after the other."""
        return f"{self.program}\n\n```output\n{self.printed}\n```\n\n{self.verified}"


def find_program(answer: str) -> tuple[str, str] | None:
    """An answer up to the end of its first fenced block, and the program in it; None where it has none."""
    found = PROGRAM.search(answer)
    return (answer[: found.end()].strip(), found[1]) if found and found[1].strip() else None


def find_answer(verified: str) -> str | None:
    """What the last line that begins with `Answer:` says; None where nothing is concluded."""
    found = ANSWER.findall(verified)
    return found[-1] if found else None


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer arrives at the number of a reference, behind its last #### where there is one.

    Without a number in the reference the texts are compared.
    """
    _, mark, rest = reference.rpartition("####")
    marked = NUMBER.search(rest) if mark else None
    wanted = value_of(marked) if marked else last_number(reference)
    return same_text(answer, reference) if wanted is None else last_number(answer) == wanted


def trajectory(stages: Sequence[Stage]) -> str:
    """The stages of a solution as one text."""
    return "\n\n".join(stage.text() for stage in stages)
