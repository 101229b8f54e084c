"""What generator.json of a generator of adapters holds, as far as somebody relies on it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from lrft.files.records import Record


class GeneratorRecord(Record):
    """generator.json of a generator of adapters."""

    format: int
    generator: dict[str, Any]
    decisive: str
    seed: int = Field(ge=0)
    step: int = Field(ge=0)
    steps: int = Field(ge=0)
    base: str
    base_sha256: str
    condition: list[Annotated[int, Field(gt=0, le=2**24)]]
    tasks: dict[str, list[str]]
    shapes: dict[
        str, Annotated[list[Annotated[int, Field(gt=0, le=2**24)]], Field(min_length=2, max_length=2)]
    ]
