"""How a result leaves: as text for a person, or as the only JSON document on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, TypedDict, TypeVar

import typer

from lrft.core import stop
from lrft.core.notes import is_lead, is_terminal
from lrft.core.plain import plain
from lrft.registry.errors import LrftError, ProblemRecord, RecipeError
from lrft.registry.secrets import masked

if TYPE_CHECKING:
    from rich.table import Column, Table

T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, which holds the error too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; results and errors.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the base model.")
]


class ErrorRecord(TypedDict):
    """An error beside what was found."""

    message: str
    exit_code: int
    kind: str
    problems: list[ProblemRecord]


def result(document: T, as_json: bool, show: Callable[[T], None]) -> None:
    """Hand over what a command found: once, and before the error where it is both. The first process alone prints.

    Args:
        document: plain values, or what `plain` makes such.
        show: prints the document as text.
    """
    if OneDocument.open is not None:
        OneDocument.open.found = document
    elif is_lead():
        with stop.held():  # what was found is shown whole, whoever asks to stop meanwhile
            print(_text(document)) if as_json else show(document)


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON, also when nothing else about it makes sense; help stays text."""
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    return "--json" in words and not {"-h", "--help"} & set(words)


class OneDocument:
    """Keeps standard output for one document; what anybody else writes there goes to standard error instead."""

    open: OneDocument | None = None

    def __init__(self) -> None:
        self.found: object = None

    def __enter__(self) -> OneDocument:
        OneDocument.open = self
        self.stream, sys.stdout = sys.stdout, sys.stderr
        self.kept = _divert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.kept is not None:
            os.dup2(self.kept, 1)
            os.close(self.kept)
        sys.stdout = self.stream
        OneDocument.open = None

    def text(self, failure: BaseException | None) -> str:
        """What was found, and the error beside it."""
        if failure is None:
            return _text({} if self.found is None else self.found)
        found = getattr(failure, "record", None) if self.found is None else self.found
        beside = found if isinstance(found, dict) else {} if found is None else {"results": found}
        return _text({**beside, "error": _error(failure)})


def _divert() -> int | None:
    """A copy of file descriptor 1, which then leads to standard error: libraries and children write there too."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        return None
    return kept


def _error(failure: BaseException) -> ErrorRecord:
    problems = failure.problems if isinstance(failure, RecipeError) else []
    return {
        "message": masked(str(failure)) or type(failure).__name__,
        "exit_code": failure.exit_code if isinstance(failure, LrftError) else 1,
        "kind": type(failure).__name__,
        "problems": [problem.record() for problem in problems],
    }


def _text(document: object) -> str:
    return json.dumps(plain(document), indent=2, allow_nan=False)


def show_table(table: Table) -> None:
    """The table on standard output: drawn on a terminal, else in plain columns, the heads first, one row a line."""
    if is_terminal(sys.stdout):
        for column in table.columns:
            column.overflow = "fold"  # a cell that is too wide goes on below, and loses nothing
        from rich.console import Console

        Console(markup=False, highlight=False, emoji=False).print(table)
        return
    columns = [_pad(column) for column in table.columns]
    for cells in zip(*columns, strict=True):
        print("  ".join(cells).rstrip())


def show_cells(rows: Sequence[Sequence[str]]) -> None:
    """The same of rows of text, the heads first."""
    from rich.table import Table

    heads, *others = rows
    table = Table(*heads)
    for row in others:
        table.add_row(*row)
    show_table(table)


def _pad(column: Column) -> list[str]:
    """Head and cells of a column at one width, each on one line."""
    from rich.cells import cell_len

    cells = [" ".join(str(cell).split()) for cell in (column.header, *column.cells)]
    width = max(map(cell_len, cells))
    spaces = [" " * (width - cell_len(cell)) for cell in cells]
    if column.justify == "right":
        return [space + cell for cell, space in zip(cells, spaces, strict=True)]
    return [cell + space for cell, space in zip(cells, spaces, strict=True)]
