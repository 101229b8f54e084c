"""Plain values: what JSON, YAML and a row of a data set hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

# Read-only on purpose: a `dict[str, float]` is a `Mapping[str, Json]`, though it is no `dict[str, Json]`.
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"


def to_section(value: Json) -> Mapping[str, Json]:
    """The value as a section; an empty one where it is anything else."""
    return value if isinstance(value, dict) else {}


def to_list(value: Json) -> list[Json]:
    """The value as a list; an empty one where it is anything else."""
    return value if isinstance(value, list) else []
