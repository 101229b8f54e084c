"""JSON that lrft wrote itself, read as if somebody else had: what is no such record is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lrft.files.read import RECORD, decoded, read_bytes
from lrft.registry.errors import DamagedFile
from lrft.registry.json import Json

T = TypeVar("T")
MAX_DEPTH = 64
SUM = "sha256"  # the key of a record's own sum
WORDS = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def read_object(
    path: Path, kind: Any = None, most: int = RECORD, within: Path | None = None
) -> dict[str, Any]:
    """The JSON object in a file, its values of the types that `kind` says.

    Args:
        kind: what pydantic checks it against; what it does not name may be anything.

    Raises:
        MissingFile: there is no such file.
        DamagedFile: it is not regular, too large, empty, torn, nested too deep, no object, or of other types.
    """
    return parse_object(read_bytes(path, most, within), path, kind)


def parse_object(content: bytes, path: Path, kind: Any = None) -> dict[str, Any]:
    """The JSON object that a file's content is; see `read_object`.

    Raises:
        DamagedFile: it is none.
    """
    found = parse(content, path)
    if not isinstance(found, dict):
        raise DamagedFile(path, f"holds {WORDS[type(found)]}, where an object is meant")
    if kind is not None:
        check(found, kind, path)
    return found


def read_summed(path: Path, kind: Any = None, within: Path | None = None) -> dict[str, Any]:
    """A record as it was written by `with_sum`, without its sum; those of an older lrft have none.

    Raises:
        MissingFile, DamagedFile: as `read_object`, or its sum is another.
    """
    return summed(read_object(path, within=within), path, kind)


def summed(found: dict[str, Any], path: Path, kind: Any = None) -> dict[str, Any]:
    """The same of a record that was read.

    Raises:
        DamagedFile: its sum is another, or its values are of other types.
    """
    if found.get(SUM) not in (None, own_sum(found)):
        raise DamagedFile(path, "is not what lrft wrote: it was edited, or is damaged")
    rest = {key: value for key, value in found.items() if key != SUM}
    if kind is not None:
        check(rest, kind, path)
    return rest


def parse(content: bytes, path: Path) -> Any:
    """The JSON value that a file's content is.

    Raises:
        DamagedFile: it is none, or nested deeper than `MAX_DEPTH`.
    """
    text = decoded(content, path)
    if not text.strip():
        raise DamagedFile(path, "is empty")
    try:
        found = json.loads(text)
        if "\\u" in text:  # an escape may be half of a pair, which nothing can print
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        torn = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        what = "is torn: it ends in the middle" if torn else "is no JSON"
        raise DamagedFile(path, f"{what} ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise DamagedFile(path, f"is nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeEncodeError:
        raise DamagedFile(path, "holds half of a character pair (a \\ud800-style escape)") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DamagedFile(path, f"is no JSON ({error})") from None
    _check_depth(found, path)
    return found


def check(found: object, kind: Any, path: Path) -> None:
    """Compare a value with the types that are meant; no value is converted.

    Raises:
        DamagedFile: names the first key whose value is of another type.
    """
    try:
        _adapter(kind).validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise DamagedFile(path, f"its key {key!r} is wrong ({message})") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def own_sum(record: Mapping[str, Json]) -> str:
    """sha256 (hex) of a record's values without its own sum, whatever the order and the white space."""
    rest = {key: value for key, value in record.items() if key != SUM}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_sum(record: Mapping[str, Json]) -> dict[str, Json]:
    """The record with its own sum, so that a later reader sees whether a bit of it changed."""
    plain = json.loads(json.dumps(record))  # as it will be read: tuples are lists, keys are texts
    return {**plain, SUM: own_sum(plain)}


def _check_depth(found: object, path: Path) -> None:
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [
            inside
            for value in level
            if isinstance(value, dict | list)
            for inside in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise DamagedFile(path, f"is nested more than {MAX_DEPTH} levels deep")
