"""Rows of JSON, JSON-lines, CSV, TSV and plain text files, exactly as written, each with its line.

These are parsed here and not by `datasets`: its readers guess types, so that a text "2020-01-01" comes back
as a timestamp and "007" or "NA" as a number or nothing, and they do not say which line of a file is broken.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lrft.data.example import Row
from lrft.data.json_rows import is_large, read_json, read_json_lines
from lrft.data.text_lines import WHOLE, IndexedLines, Read, fail, lines_of
from lrft.registry.errors import DataError
from lrft.registry.source import COMPRESSED, Source

COLUMN = "text"  # of the rows of a .txt file
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CARRIAGE = "its lines end in carriage returns alone; save it with line feeds"


@dataclass(frozen=True)
class Table:
    """How a file of columns is read.

    Attributes:
        header: the first line names the columns; else these are their names, or column_1, column_2, ...
        separator: what stands between the columns; by default that of the kind of file.
    """

    header: bool | Sequence[str] = True
    separator: str | None = None

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return self != Table()


def read_csv(path: Path, limit: int | None = None, table: Table = Table()) -> Read:
    """Comma-separated, fields quoted where needed, names in the first line. Every value is text."""
    return _read_table(path, limit, table, ",")


def read_tsv(path: Path, limit: int | None = None, table: Table = Table()) -> Read:
    """Tab-separated, names in the first line. Quotes are ordinary characters, as in the GLUE files."""
    return _read_table(path, limit, table, "\t", quoting=csv.QUOTE_NONE)


def read_document(path: Path, limit: int | None = None) -> Read:
    """The whole file as one row, its text in the column `text`; none where it is blank."""
    text = "".join(lines_of(path, WHOLE))
    return ([{COLUMN: text}], [1]) if text.strip() else ([], [])


def read_plain_lines(path: Path, limit: int | None = None, table: Table | None = None) -> Read:
    """A row a line, without its end, in the column `text`, or parted into the columns of a table; not of blank ones."""
    parse = _plain_line if table is None else partial(_parted, table)
    if is_large(path):
        indexed = IndexedLines(path, parse, limit)
        return indexed, indexed.lines
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in enumerate(lines_of(path), 1):
        if len(rows) == limit:
            break
        if line.strip():
            rows.append(parse(path, number, line))
            numbers.append(number)
    return rows, numbers


_READERS: dict[str, Callable[[Path, int | None], Read]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_document,
}
_TABLES: dict[str, Callable[[Path, int | None, Table], Read]] = {".csv": read_csv, ".tsv": read_tsv}
TEXT_READERS = {f"{kind}{packed}": read for kind, read in _READERS.items() for packed in ("", *COMPRESSED)}
TABLE_READERS = {f"{kind}{packed}": read for kind, read in _TABLES.items() for packed in ("", *COMPRESSED)}


def _plain_line(path: Path, number: int, line: str) -> Row:
    return {COLUMN: line.removesuffix("\n").removesuffix("\r")}


def _parted(table: Table, path: Path, number: int, line: str) -> Row:
    """A line in the columns that the table names."""
    assert table.separator is not None and not isinstance(table.header, bool), "refused with the source"
    parts = line.removesuffix("\n").removesuffix("\r").split(table.separator)
    if len(parts) != len(table.header):
        names = ", ".join(table.header)
        fail(path, number, f"{len(parts)} columns between {table.separator!r} where header names {names}")
    return dict(zip(table.header, parts, strict=True))


def _read_table(
    path: Path, limit: int | None, table: Table, separator: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Read:
    csv.field_size_limit(2**31 - 1)
    delimiter = table.separator or separator
    if len(delimiter) > 1:
        fail(
            path,
            1,
            f"columns of such a file are parted by one character, not by {delimiter!r}; correct separator",
        )
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
                if len(fields) == 1 and (other := _other_separator(path, begun, table, delimiter)):
                    fail(path, begun, f"the line is one column, {fields[0]!r:.60}{other}")
                names = (
                    _header(path, begun, fields)
                    if table.header is True
                    else _named(path, begun, fields, table)
                )
                if table.header is True:
                    continue
            if len(fields) != len(names):
                fail(path, begun, f"{len(fields)} fields where the header has {len(names)}")
            elif len(rows) == limit:
                break
            else:
                rows.append(dict(zip(names, fields, strict=True)))
                numbers.append(begun)
    except csv.Error as error:
        what = CARRIAGE if "new-line" in str(error) else f"not a valid table ({error})"
        fail(path, begins, f"{what}{_other_separator(path, begins, table, delimiter)}")
    return rows, numbers


def _other_separator(path: Path, line: int, table: Table, delimiter: str) -> str:
    """What to write where the first line looks parted by something else; empty where it does not."""
    meant = (
        table.separator is not None
        or table.header is False
        or (table.header is not True and len(table.header) == 1)
    )
    first = "" if meant or line > 1 else next(lines_of(path))
    other = max((mark for mark in SEPARATORS if mark != delimiter), key=first.count)
    if not first.count(other) or delimiter in first:
        return ""
    return (
        f"; for columns between {SEPARATORS[other]} write separator: {json.dumps(other)} beside source, or save it "
        f"with {SEPARATORS[delimiter]}; where this is one column write separator: {json.dumps(delimiter)}"
    )


def _named(path: Path, line: int, fields: list[str], table: Table) -> list[str]:
    """The names of the columns of a file whose first row these fields are."""
    if isinstance(table.header, bool):
        return [f"column_{number}" for number in range(1, len(fields) + 1)]
    names = list(table.header)
    if len(fields) != len(names):
        fail(path, line, f"{len(fields)} fields where header names {len(names)}: {', '.join(names)}")
    if fields == names:
        fail(path, line, "the file names its columns itself; write header: true, or leave it out")
    return names


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled or "" in names:
        what = f"the column {doubled[0]!r} twice" if doubled and doubled[0] else "a column without a name"
        fail(
            path,
            line,
            f"the header has {what}; where the first line is a row, write header: false or the names",
        )
    return names


def table_of(path: Path, suffix: str, source: Source, key: str) -> Table | None:
    """How the columns of a file are read; None where nothing is said of them.

    Raises:
        DataError: something is said, and the file has no such columns.
    """
    table = Table(source.header, source.separator)
    said = "header" if source.header is not True else "separator"
    if not table.given:
        return None
    if not isinstance(source.header, bool) and len({*source.header}) < max(1, len(source.header)):
        raise DataError(f"{key}.header: names are all different, and there is at least one")
    lines = suffix.startswith(".txt") and source.row == "line"
    if lines and (source.separator is None or isinstance(source.header, bool)):
        raise DataError(
            f"{key}.{said}: columns of a .txt file need both, header: [NAME, ...] and the separator between them"
        )
    if not lines and suffix not in TABLE_READERS:
        remedy = "; a .txt file with a row a line has row: line" if suffix.startswith(".txt") else ""
        raise DataError(
            f"{key}.{said}: is about .csv and .tsv files, and {path} is none{remedy}; remove the key"
        )
    return table
