"""What reports of several runs are made of: tables as Markdown; a page, its record and its numbers as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lrft.files.own import check_own
from lrft.files.write import write_file

ENDINGS = ("json", "png", "md", "csv")  # of the files of a report


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; cells are Markdown already, a bar in them is escaped."""
    return [_row(heads), _row(["---"] * len(heads)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def names_of(stem: str) -> list[str]:
    """The files of a report, the first one first."""
    return [f"{stem}.{ending}" for ending in ENDINGS]


def check_report(out: Path, stem: str, kind: Any, what: str) -> None:
    """Refuse a folder in which `write_files` would write over somebody else's files.

    Args:
        kind: what STEM.json holds.
        what: writes the report, such as `a sweep`.

    Raises:
        UsageError: there are such.
    """
    check_own(out, f"{stem}.json", kind, names_of(stem), what)


def write_files(
    out: Path,
    stem: str,
    record: object,
    numbers: Iterable[Sequence[object]],
    draw: Callable[[Path], bool],
    page: Callable[[bool], Sequence[str]],
) -> Path:
    """Write STEM.json, STEM.png, STEM.md and STEM.csv into `out`; returns STEM.md.

    The record is first: by it the next call knows that the others are a report's too.

    Args:
        numbers: of the CSV, its heads first.
        draw: writes the picture, where there is something to draw it with; whether it did.
        page: the lines of the Markdown, beside a picture or not.

    Raises:
        WriteError: the folder cannot be written.
    """
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(numbers)

    def write(ending: str, text: str) -> Path:
        file = out / f"{stem}.{ending}"
        write_file(file, text, f"--out {out}: {file.name}")
        return file

    write("json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    found = write("md", "\n".join(page(draw(out / f"{stem}.png"))))
    write("csv", lines.getvalue())
    return found
