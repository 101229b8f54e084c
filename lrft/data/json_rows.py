"""Rows of JSON and JSON-lines files, each object parsed by itself, so that it keeps its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lrft.core import stop
from lrft.data.example import Row
from lrft.data.text_lines import WHOLE, IndexedLines, Read, fail, lines_of
from lrft.registry.json import Json, check_characters, reason_of, strict_decoder, to_section
from lrft.registry.source import COMPRESSED

LARGE = 64 * 2**20  # bytes of a file from which on its rows are not held in memory


def is_large(path: Path) -> bool:
    """Whether the rows of a file are read when they are asked for; one that is compressed has to be read in order."""
    return path.suffix not in COMPRESSED and path.stat().st_size >= LARGE


def read_json_lines(path: Path, limit: int | None = None) -> Read:
    """One JSON object a line; blank lines are skipped."""
    if is_large(path):
        rows = IndexedLines(path, parse_line, limit)
        return rows, rows.lines
    return _parse_lines(path, lines_of(path), limit)


def parse_line(path: Path, number: int, line: str) -> Row:
    """The row that is one line of a file."""
    return _row(path, number, _parse(path, number, line), line)


def read_json(path: Path, limit: int | None = None) -> Read:
    """A list of objects, `{"data": [...]}`, or JSON lines under the name .json."""
    lines = list(lines_of(path, WHOLE))
    text = "".join(lines)
    start = _skip(text, 0)
    if text.startswith("{", start) and _is_lines(text, start):
        return _parse_lines(path, iter(lines), limit)
    if text.startswith("{", start):
        return _parse_list(path, text, _find_data(path, text, start), limit, alone=False)
    if not text.startswith("[", start):
        fail(path, 1, "a .json file holds a list of objects" if text.strip() else "the file is empty")
    return _parse_list(path, text, start, limit)


def _parse_lines(path: Path, lines: Iterator[str], limit: int | None) -> Read:
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in enumerate(lines, 1):
        if len(rows) == limit:
            break
        if line.strip():
            rows.append(parse_line(path, number, line))
            numbers.append(number)
    return rows, numbers


def _parse(path: Path, number: int, text: str) -> Json:
    try:
        found: Json = strict_decoder().decode(text.strip())
    except json.JSONDecodeError as error:
        whole = text.strip() in ("[", "{") and number == 1
        remedy = (
            "; a row is one line here, and a file that is one JSON value is called .json" if whole else ""
        )
        fail(path, number, f"not valid JSON ({error.msg} at column {error.colno}){remedy}")
    except (RecursionError, ValueError) as error:
        fail(path, number, reason_of(error))
    return found


def _parse_list(path: Path, text: str, start: int, limit: int | None, alone: bool = True) -> Read:
    """The objects of the JSON list that begins at `start`, one at a time so that each keeps its line.

    No lines are given where two of the rows begin on one: a place has to name one row.

    Args:
        alone: nothing may follow the list.
    """
    rows: list[Row] = []
    numbers: list[int] = []
    line, counted, shared = 1, 0, False
    at, decoder = _skip(text, start + 1), strict_decoder()
    while not text.startswith("]", at) and len(rows) != limit:
        stop.poll()
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            fail(path, error.lineno, f"not valid JSON ({error.msg} at column {error.colno})")
        except (RecursionError, ValueError) as error:
            fail(path, line, reason_of(error))
        rows.append(_row(path, line, value, text[at:end]))
        numbers.append(line)
        at, begun = _skip(text, end), at
        ended = text.startswith("]", at)
        if not ended:
            more = _skip(text, at + 1)
            if not text.startswith(",", at) or text.startswith("]", more):
                fail(
                    path,
                    1 + text.count("\n", 0, at),
                    "not valid JSON (expected a comma and a row, or the list's ])",
                )
            at, shared = more, shared or "\n" not in text[begun:more]
        elif alone and text[at + 1 :].strip():
            fail(path, 1 + text.count("\n", 0, at), "not valid JSON (something follows the list)")
    return rows, None if shared else numbers


def _find_data(path: Path, text: str, start: int) -> int:
    """Where the list of a top-level `{"data": [...]}` begins."""
    value = to_section(_parse(path, 1 + text.count("\n", 0, start), text))
    if not isinstance(value.get("data"), list):
        keys = ", ".join(map(repr, list(value)[:9]))
        fail(
            path, 1, f'one object with {keys or "no keys"}; expected a list of objects, or {{"data": [...]}}'
        )
    decoder, at = strict_decoder(), _skip(text, start + 1)
    while True:
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the colon
        if key == "data":
            return at
        _, at = decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the comma


def _is_lines(text: str, start: int) -> bool:
    """Whether one object ends on the first line and another follows it."""
    first, _, rest = text[start:].partition("\n")
    try:
        return isinstance(json.loads(first), dict) and bool(rest.strip())
    except (ValueError, RecursionError):
        return False


def _row(path: Path, line: int, value: Json, written: str) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(
            type(value), "a number"
        )
        fail(path, line, f"a row must be an object with named columns, this is {kind}")
    if not value:
        fail(path, line, "the row has no columns")
    try:
        check_characters(value, written)
    except ValueError as error:
        fail(path, line, str(error))
    return value


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
