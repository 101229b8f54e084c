"""What the JSON files of a run folder hold."""

from __future__ import annotations

from typing import TypedDict


class SetUp(TypedDict, total=False):
    """What a run was made on; older runs wrote down less."""

    versions: dict[str, str | None]
    hardware: dict[str, str | int | None]
    git: str | None


class Environment(TypedDict):
    """What a command runs on, and its name."""

    versions: dict[str, str | None]
    hardware: dict[str, str | int | None]
    git: str | None
    command: str


class HeldOutRows(TypedDict):
    """Summed loss and tokens of each held-out row."""

    loss: list[float]
    tokens: list[int]
