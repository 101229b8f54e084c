"""What reports of several runs are made of: tables as Markdown; a page, its record and its numbers as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lrft.files.write import write_file


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; cells are Markdown already, a bar in them is escaped."""
    return [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def write_files(
    out: Path, stem: str, page: Sequence[str], record: object, numbers: Iterable[Sequence[object]]
) -> Path:
    """Write STEM.md, STEM.json and STEM.csv into `out`; returns STEM.md.

    Args:
        page: the lines of the Markdown.
        numbers: of the CSV, its heads first.

    Raises:
        WriteError: the folder cannot be written.
    """
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(numbers)
    for ending, text in (
        ("md", "\n".join(page)),
        ("json", json.dumps(record, indent=2, allow_nan=False) + "\n"),
        ("csv", lines.getvalue()),
    ):
        file = f"{stem}.{ending}"
        write_file(out / file, text, f"--out {out}: {file}")
    return out / f"{stem}.md"
