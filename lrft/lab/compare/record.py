"""What report.json of a comparison holds."""

from __future__ import annotations

from typing import TypedDict

from lrft.registry.json import Json
from lrft.training.records import SetUp


class Point(TypedDict):
    """A rate that was tried, and the loss there; None where it diverged."""

    rate: float
    loss: float | None


class DifferenceRecord(TypedDict):
    """A `Paired` as plain values."""

    mean: float
    interval: tuple[float, float]
    lower: int
    higher: int
    pairs: int
    p: float


class Costs(TypedDict):
    """What the runs of an arm took; None where no run said."""

    run_seconds: float | None
    step_seconds: float | None
    peak_memory_bytes: float | None
    adapter_bytes: float | None
    checkpoint_bytes: float | None
    trained: float | None


class ArmRecord(Costs):
    """One arm: what it is, what it costs, and what it gave."""

    label: str
    rank: int | None
    before: int | None
    trainable: int
    state_bytes: int
    recipe: str
    overrides: list[str]
    rate: float
    rate_at_edge: bool
    grid: list[Point]
    losses: list[float | None]
    mean: float | None
    interval: tuple[float, float] | None
    difference: DifferenceRecord | None


class Differences(TypedDict):
    """Keys in which the arms differ, and the value of each arm."""

    arms: list[str]
    keys: dict[str, list[Json]]


class Found(TypedDict):
    """What the runs gave."""

    differences: Differences
    arms: list[ArmRecord]
    environments: list[SetUp]


class Comparison(Found):
    """A whole comparison."""

    command: str
    match: str
    metric: str
    rates: list[float]
    trials: int
    tuning_seed: int | None
    seeds: list[int]
    jobs: int
    cluster: str | None
    threads: int | None
    seconds: float
