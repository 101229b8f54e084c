"""Rows of JSON, JSON-lines, CSV, TSV and plain text files, exactly as written, each with its line.

These are parsed here and not by `datasets`: its readers guess types, so that a text "2020-01-01" comes back
as a timestamp and "007" or "NA" as a number or nothing, and they do not say which line of a file is broken.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lrft.data.example import Row
from lrft.data.json_rows import is_large, read_json, read_json_lines
from lrft.data.text_lines import IndexedLines, Read, fail, lines_of
from lrft.registry.source import COMPRESSED

COLUMN = "text"  # of the rows of a .txt file


def read_csv(path: Path, limit: int | None = None) -> Read:
    """Comma-separated, fields quoted where needed, names in the first line. Every value is text."""
    return _read_table(path, limit, delimiter=",")


def read_tsv(path: Path, limit: int | None = None) -> Read:
    """Tab-separated, names in the first line. Quotes are ordinary characters, as in the GLUE files."""
    return _read_table(path, limit, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_document(path: Path, limit: int | None = None) -> Read:
    """The whole file as one row, its text in the column `text`; none where it is blank."""
    text = "".join(lines_of(path))
    return ([{COLUMN: text}], [1]) if text.strip() else ([], [])


def read_plain_lines(path: Path, limit: int | None = None) -> Read:
    """A row a line, without its end, in the column `text`; blank lines are skipped."""
    if is_large(path):
        indexed = IndexedLines(path, _plain_line, limit)
        return indexed, indexed.lines
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in enumerate(lines_of(path), 1):
        if len(rows) == limit:
            break
        if line.strip():
            rows.append(_plain_line(path, number, line))
            numbers.append(number)
    return rows, numbers


_READERS: dict[str, Callable[[Path, int | None], Read]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_document,
}
TEXT_READERS = {f"{kind}{packed}": read for kind, read in _READERS.items() for packed in ("", *COMPRESSED)}


def _plain_line(path: Path, number: int, line: str) -> Row:
    return {COLUMN: line.removesuffix("\n").removesuffix("\r")}


def _read_table(
    path: Path, limit: int | None, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Read:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines_of(path), strict=True, delimiter=delimiter, quoting=quoting)
    rows: list[Row] = []
    numbers: list[int] = []
    names: list[str] = []
    begins = 1
    try:
        for fields in reader:
            begun, begins = begins, reader.line_num + 1
            if not fields:
                continue
            if not names:
                names = _header(path, begun, fields)
            elif len(fields) != len(names):
                fail(path, begun, f"{len(fields)} fields where the header has {len(names)}")
            elif len(rows) == limit:
                break
            else:
                rows.append(dict(zip(names, fields, strict=True)))
                numbers.append(begun)
    except csv.Error as error:
        fail(path, begins, f"not a valid table ({error})")
    return rows, numbers


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled or "" in names:
        what = f"the column {doubled[0]!r} twice" if doubled and doubled[0] else "a column without a name"
        fail(path, line, f"the header has {what}")
    return names
