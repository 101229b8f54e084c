"""Everything lrft raises on purpose: one sentence a user can act on, and the exit code it ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from lrft.registry.secrets import masked


class LrftError(Exception):
    """Base of all expected failures. The command line prints it without a traceback; no secret is in its message.

    Attributes:
        record: what was found or finished all the same, as plain values; None where that is nothing.
    """

    exit_code = 1
    record: object = None

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class ProblemRecord(TypedDict):
    """A `Problem` as plain values."""

    file: str
    line: int | None
    key: str
    message: str


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where (`file:line`, `key`), what, and what would work."""

    key: str
    message: str
    file: str = ""
    line: int | None = None

    def record(self) -> ProblemRecord:
        """Plain values."""
        return {
            "file": masked(self.file),
            "line": self.line,
            "key": masked(self.key),
            "message": masked(self.message),
        }

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        head = f"{place}: {self.key}" if place and self.key else place or self.key
        return f"{head}: {self.message}" if head else self.message


class RecipeError(LrftError):
    """The recipe cannot work. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Problem | str | list[Problem], key: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(key, problems)
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(LrftError):
    """The command was asked for something it cannot do (no such run, folder already in use)."""

    exit_code = 2


class MissingExtra(UsageError):
    """An optional dependency is needed; the message holds the install line."""


class DataError(LrftError):
    """The data cannot be trained on: malformed rows, nothing supervised, too long."""

    exit_code = 3


class NumericalError(LrftError):
    """A loss or gradient stopped being a finite number, or nothing trains."""

    exit_code = 4


class OutOfMemory(LrftError):
    """The device ran out of memory; the message says which setting to lower first."""

    exit_code = 5


class ToleranceError(LrftError):
    """A merge or a reproduced number missed its tolerance. The files were written all the same."""

    exit_code = 6

    def __init__(self, message: str, record: object = None) -> None:
        self.record = record
        super().__init__(message)


class CheckpointError(LrftError):
    """A checkpoint is missing, damaged, or belongs to another recipe or base model."""

    exit_code = 2


class DamagedFile(CheckpointError):
    """A file of a run, or of a model, is not what was written, or none that could be read.

    Attributes:
        file: which one.
        problem: what is wrong with it, without the file and without what would work.
    """

    def __init__(self, file: object, problem: str, remedy: str = "") -> None:
        self.file, self.problem = str(file), problem
        super().__init__(f"{file}: {problem}; {remedy or 'restore it from a copy'}")


class MissingFile(DamagedFile):
    """There is no such file."""


class NotMergeable(LrftError):
    """The adapter is not a change of the weight, so no dense checkpoint can express it."""

    exit_code = 2


class Interrupted(LrftError):
    """A signal asked to stop, and what was finished is kept.

    Attributes:
        told: whether the message says what that is, and what to type next.
    """

    told = True

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


def first_line(error: BaseException, most: int = 160) -> str:
    """What an error of a library says, without secrets: its first line, cut to `most` characters, or its kind."""
    lines = masked(str(error)).strip().splitlines()  # before it is cut
    return lines[0][:most] if lines else type(error).__name__
