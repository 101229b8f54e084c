"""Notes, progress and tables for the person at the terminal."""

from __future__ import annotations

import sys

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from lrft.core.notes import is_terminal
from lrft.core.notes import say as say
from lrft.evaluate.progress import EvaluationBar


def progress() -> EvaluationBar:
    """A bar with rate and time left, or a plain line now and then; called with (what, done, total)."""
    return EvaluationBar()


def show_table(table: Table) -> None:
    """The table on standard output: drawn on a terminal, else in plain columns, the heads first, one row a line."""
    if is_terminal(sys.stdout):
        for column in table.columns:
            column.overflow = "fold"  # a cell that is too wide goes on below, and loses nothing
        Console(markup=False, highlight=False, emoji=False).print(table)
        return
    columns = [_padded(column) for column in table.columns]
    for cells in zip(*columns, strict=True):
        print("  ".join(cells).rstrip())


def _padded(column: Column) -> list[str]:
    """Head and cells of a column at one width, each on one line."""
    cells = [" ".join(str(cell).split()) for cell in (column.header, *column.cells)]
    width = max(map(cell_len, cells))
    spaces = [" " * (width - cell_len(cell)) for cell in cells]
    if column.justify == "right":
        return [space + cell for cell, space in zip(cells, spaces, strict=True)]
    return [cell + space for cell, space in zip(cells, spaces, strict=True)]
