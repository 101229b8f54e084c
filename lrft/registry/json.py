"""Plain values: what JSON, YAML and a row of a data set hold, and how JSON that somebody else wrote is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

# Read-only on purpose: a `dict[str, float]` is a `Mapping[str, Json]`, though it is no `dict[str, Json]`.
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"


def to_section(value: Json) -> Mapping[str, Json]:
    """The value as a section; an empty one where it is anything else."""
    return value if isinstance(value, dict) else {}


def to_list(value: Json) -> list[Json]:
    """The value as a list; an empty one where it is anything else."""
    return value if isinstance(value, list) else []


def parse_text(text: str) -> Json:
    """The JSON value that a text is: one that stands in a row, or that a model wrote.

    Raises:
        ValueError: it is none, holds what JSON has no form of or half a character, or is nested too deeply; says which.
    """
    try:
        found: Json = strict_decoder().decode(text.strip())
        check_characters(found, text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise ValueError(reason_of(error)) from None
    return found


def strict_decoder() -> json.JSONDecoder:
    """Reads no NaN, no Infinity, no number that is too large to be finite, and no key twice; each is a ValueError."""
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)


def reason_of(error: Exception) -> str:
    """Why a decoder read nothing, of an error that names no place."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "set_int_max_str_digits" in str(error):  # Python's, with advice for programs
        return "a number of more than 4,300 digits; write it as a text"
    return str(error)


def check_characters(value: Json, written: str) -> None:
    """Refuse half a character, which JSON may spell and no tokenizer and no file takes.

    Args:
        written: what the value was read from.

    Raises:
        ValueError: it is there.
    """
    if "\\ud" not in written and "\\uD" not in written:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"an escape makes half a character (\\u{half:04x} alone)") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {_doubled(names)[:60]!r} stands twice in one object")
    return made


def _doubled(names: list[str]) -> str:
    """The first name that stands there twice."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"{written[:40]} is too large for a number; write it as a text")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
