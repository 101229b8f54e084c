"""What the JSON files of a run folder hold, as far as somebody relies on it: the types that reading compares with.

A key that an older version did not write is missing, one that a later version adds is let through.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Plain = dict[str, Any]


class Record(BaseModel):
    """Values are compared and never converted; keys that nobody relies on are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class FileSum(Record):
    """A file's size and sum."""

    bytes: int = Field(ge=0)
    sha256: str


class RunRecord(Record):
    """run.json."""

    recipe_name: str | None = None
    recipe_hash: str = ""
    origins: dict[str, str] | None = None
    base_fingerprint: str = ""
    data: dict[str, str] = {}
    date: str | None = None
    trainable: int = 0
    total_steps: int = 0
    seed: int = 0
    packing: bool = False
    packing_order: str = ""
    joined: bool = False
    recomputed_layers: int | None = None
    matrices: Plain = {}
    processes: int | None = Field(default=None, ge=1)
    trust_remote_code: bool = False
    extended: list[Plain] = []
    adapter: Plain = {}
    teacher: Plain = {}
    versions: dict[str, str | None] = {}
    hardware: dict[str, str | int | None] = {}
    git: str | None = None


class SiteEntry(Record):
    """One site of plan.json."""

    name: str
    in_features: int
    out_features: int
    has_bias: bool = False
    kind: str = "linear"
    inner_features: int = 0
    settings: Plain | None
    quantization: Plain = {}


PlanRecord = dict[str, SiteEntry]


class TasksRecord(Record):
    """Tasks that were learnt one after the other (`lrft.training.task_scores.record`)."""

    names: list[str]
    losses: list[list[float]]
    forgetting: dict[str, float] = {}


class ResultRecord(Record):
    """result.json."""

    step: int = 0
    loss: float | None = None
    trainable: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    name: str = ""
    scores: Plain = {}
    tasks: TasksRecord | None = None
    best_checkpoint: str | None = None


class State(Record):
    """state.json of a checkpoint."""

    step: int = Field(ge=0)
    total_steps: int
    optimizer: Any
    schedule: Plain
    callbacks: Any
    parameters: list[str]
    best: str | None = None


class Manifest(Record):
    """manifest.json of a checkpoint.

    Attributes:
        plan, run, decisive: what the checkpoint relies on beside its own files: plan.json, what resuming and scoring
            read of run.json, and the sum of the recipe's decisive part. Format 1 has none of them.
    """

    format: int
    files: dict[str, FileSum]
    step: int | None = None
    recipe: str = ""
    base: str = ""
    plan: PlanRecord | None = None
    run: RunRecord | None = None
    decisive: str = ""


class RunManifest(Record):
    """manifest.json of a run folder: file -> the sums that it may have, two while it is being replaced."""

    format: int
    files: dict[str, list[FileSum]]


class FolderManifest(Record):
    """manifest.json of a folder that was written once: file -> its sum."""

    format: int
    files: dict[str, FileSum]


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
    layers: dict[str, list[list[int]]] = {}
    relative_error: float = 0.0
    files: dict[str, FileSum]


class Index(Record):
    """model.safetensors.index.json."""

    weight_map: dict[str, str]


class MetricsLine(Record):
    """A line of metrics.jsonl; beside these it has whatever a part of the recipe recorded."""

    step: int = Field(ge=0)
    loss: float | None = None
    seconds: float = 0.0
    tokens_per_second: float | None = None


class Job(Record):
    """What is known of a job that was submitted to a cluster."""

    id: str
    folder: str


class TaskScores(Record):
    """One task of an evaluation's report."""

    n: int = 0
    metrics: Plain


class Scores(Record):
    """eval/LABEL.json."""

    tasks: dict[str, TaskScores]


class TensorEntry(Record):
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


class ModelConfig(Record):
    """config.json of a model, as far as it is looked at here."""

    architectures: list[str] | None = None


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
