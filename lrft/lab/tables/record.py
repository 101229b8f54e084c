"""What NAME.json of a table holds, tier by tier."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict, final

from lrft.lab.compare.record import Comparison
from lrft.registry.json import Json
from lrft.training.records import SetUp


class NumberRecord(TypedDict):
    """A published number beside ours."""

    row: str
    column: str
    published: float
    ours: float | None
    verdict: str
    provenance: str
    conflict: str | None
    difference: float | None


class Facts(TypedDict):
    """How a table of the exact tier was counted."""

    seconds: float
    rows_kept: int
    versions: dict[str, str | None]
    hardware: dict[str, str | int | None]
    git: str | None
    command: str


@final
class ExactRecord(Facts):
    """A table of the exact tier."""

    name: str
    title: str
    paper: str
    tier: Literal["exact"]
    verdicts: dict[str, int]
    numbers: list[NumberRecord]


@final
class ScaledRecord(Comparison):
    """A table of the scaled tier."""

    name: str
    title: str
    paper: str
    claim: str
    provenance: str
    tier: Literal["scaled"]
    bed: str
    scale: str
    notes: list[str]
    overrides: list[str]
    absent: list[str]
    verdict: str
    criteria: list[dict[str, Json]]


class ResultRecord(NumberRecord):
    """A published result beside ours."""

    values: list[float | None]
    scored_rows: int


class ColumnRecord(TypedDict):
    """A benchmark as its table describes it."""

    metric: str | list[str] | None
    scale: float
    unit: str
    tolerance: float | None
    provenance: str
    digits: int


class RowRecord(TypedDict):
    """What a row trains, and what it holds in memory."""

    label: str
    recipe: str | None
    overrides: list[str]
    steps: int | None
    tokens: float | None
    state: str
    trainable: int | None
    trainable_percent: float | None
    memory_bytes: int | None
    memory: dict[str, int]


@final
class FullRecord(TypedDict):
    """A table of the full tier; overrides and seconds are those of a run."""

    name: str
    title: str
    paper: str
    tier: Literal["full"]
    cost: str
    settings: list[str]
    columns: dict[str, ColumnRecord]
    notes: list[str]
    runs: str
    seeds: list[int] | None
    verdicts: dict[str, int]
    rows: list[RowRecord]
    numbers: list[ResultRecord]
    environments: list[SetUp]
    overrides: NotRequired[list[str]]
    seconds: NotRequired[float]


TableRecord = ExactRecord | ScaledRecord | FullRecord


class SizedRow(TypedDict):
    """What one row or arm would train."""

    label: str
    trainable: int | None
    memory_bytes: int | None
    state: NotRequired[str]


class Sized(TypedDict):
    """What running a table would take."""

    runs: str
    memory: str
    rows: list[SizedRow]


class Sizes(Sized):
    """The same with the table's name, tier and cost."""

    name: str
    tier: str
    cost: str
