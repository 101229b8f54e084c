"""What `measure` says of a recipe."""

from __future__ import annotations

from typing import TypedDict


class Target(TypedDict):
    """What a pattern of `adapter.targets` matched."""

    pattern: str
    modules: int
    share: float


class MatrixShares(TypedDict):
    """Of all numbers in matrices, what share is adapted, stored in few bits, and out of reach of both."""

    numbers: int
    adapted: float
    quantized: float
    unreached: float
    sentence: str


class Measured(TypedDict):
    """Counts and bytes of a recipe."""

    base: int
    linear: int
    other: int
    trainable: int
    trainable_percent: float
    percent_of_base: float
    weight_bytes: int
    linear_bytes: int
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    targets: list[Target]
    matrices: MatrixShares
    ranks_undecided: bool
