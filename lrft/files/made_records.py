"""What the JSON files of folders hold that are made from runs: adapters, merges, deltas, posteriors, generators."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lrft.files.records import FileSum, Plain, Record


class AdapterConfig(Record):
    """adapter_config.json, which PEFT writes too."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    rank_pattern: Plain | None = None
    alpha_pattern: dict[str, float] | None = None
    target_parameters: list[str] | None = None
    fan_in_fan_out: bool | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None


class FidelityRecord(Record):
    """fidelity.json of a merged or an exported folder."""

    target: str | None = None
    run: str = ""
    base: str = ""
    labels: list[str] | None = None
    rank: int | None = None
    merged: bool = False
    tolerance: float = 0.0
    kl_mean: float = 0.0
    loss_difference: float = 0.0
    generation: Plain = {}
    stops: list[str] = []
    told: list[str] = []
    conversation: Plain = {}
    files: dict[str, FileSum] = {}


class DeltaRecord(Record):
    """delta.json of what fine-tuning added to a base."""

    base: str
    tuned: str
    base_fingerprint: str
    dtype: str
    shapes: dict[str, list[int]]
    rows: int = Field(gt=0)
    vocabulary: str
    changed: int = 0
    relative_change: float = 0.0
    layers: dict[str, list[list[int]]] = {}
    errors: dict[str, float] = {}
    relative_error: float = 0.0
    told: list[str] = []
    files: dict[str, FileSum]


class PosteriorRecord(Record):
    """posterior.json of a posterior over an adapter's factors."""

    format: int
    checkpoint: str
    checkpoint_sha256: str
    layers: Literal["all", "last"]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    prior_precision: float = Field(gt=0, allow_inf_nan=False)
    log_evidence: float
    log_likelihood: float
    rows: int = Field(ge=0)
    parameters: int = Field(ge=0)


class AskedRecord(Record):
    """asked.json of a search."""

    recipe: str
    method: Plain
    metric: str


class SweepRecord(Record):
    """sweep.json."""

    command: str
    recipe: str
    metric: str
    keys: list[str]
    rows: list[Plain]


class ComparisonRecord(Record):
    """report.json of a comparison."""

    command: str
    match: str
    metric: str
    arms: list[Plain]


class BasesRecord(Record):
    """bases.json."""

    recipe: str
    scores: Plain
    best: Plain


class ChoiceRecord(Record):
    """choice.json."""

    recipe: str
    classes: list[str]
    strategies: list[Plain]


class TableRecord(Record):
    """NAME.json of a table."""

    name: str
    title: str
    paper: str
    tier: Literal["exact", "scaled", "full"]
