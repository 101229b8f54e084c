"""The sections of a recipe that belong to no method: the model, the loop, and what follows it."""

from __future__ import annotations

from typing import Annotated

from lrft.recipe.inside_sections import NewTokens, RopeScaling, ScoreHead, StackedAdapter
from lrft.registry.axes import TASKS
from lrft.registry.config import Choice, Field, Literal, MethodConfig, Section, model_validator
from lrft.registry.section import ADDED as ADDED
from lrft.registry.section import Before

DECIDES_ROWS = "decides rows"
"""Marks a field that decides the rows of a step, how many steps there are, or the numbers compared."""


class ModelSection(Section):
    """The base model and how it computes."""

    name: Annotated[str, DECIDES_ROWS] = Field(
        min_length=1, description="hub id, local folder, .gguf file, or pkg:PACKAGE/FILE.gguf"
    )
    revision: Annotated[str | None, DECIDES_ROWS] = Field(
        None, description="commit, branch or tag on the hub"
    )
    weights: Annotated[Literal["pretrained", "random"], DECIDES_ROWS] = Field(
        "pretrained",
        description="random: drawn from train.seed as the architecture draws them; no weights are read",
    )
    tokenizer: Annotated[str | None, DECIDES_ROWS] = Field(
        None,
        min_length=1,
        description="hub id or local folder of another tokenizer; by default the model's own",
    )
    add_tokens: Annotated[NewTokens | None, DECIDES_ROWS, ADDED] = Field(
        None,
        description="texts that become tokens of their own, at the end of the vocabulary; the rows of the embedding "
        "and of the head for them train beside the adapter, and no other row does",
    )
    resize: Annotated[int | None, ADDED] = Field(
        None,
        gt=0,
        description="with add_tokens: pad the vocabulary to a multiple of this, with rows that no token has",
    )
    rope_scaling: Annotated[RopeScaling | None, ADDED] = Field(
        None,
        description="scaling of the rotary positions, which a merged model keeps; null for the model's own",
    )
    context: Annotated[int | None, ADDED] = Field(
        None,
        gt=1,
        description="positions of the model, at least those it has; by default these, times the factor of rope_scaling",
    )
    adapter: Annotated[str | None, ADDED] = Field(
        None,
        min_length=1,
        description="run, one of its checkpoints, folder of a PEFT adapter, or hub id of one (owner/name, or "
        "owner/name@revision), that a new training begins with; what "
        "trains from there on is said by `adapter`",
    )
    adapters: Annotated[list[StackedAdapter], ADDED] = Field(
        [],
        description="adapters of this base that are added to it, each with its weight, and stay as they are; what "
        "`adapter` says trains on top of them",
    )
    head: Annotated[ScoreHead | None, DECIDES_ROWS, ADDED] = Field(
        None,
        description="labels that whole texts are given, by a head that trains from a random start in the place of the "
        "vocabulary's: a list of classes, or one name for a number; null for a language model",
    )
    experts: Annotated[Literal["whole", "split"], ADDED] = Field(
        "whole",
        description="split: every matrix of every expert of a mixture is a linear layer, which adapters can go on and "
        "few bits can hold; whole: they stay as they are loaded, which neither reaches",
    )
    dtype: Literal["bfloat16", "float32", "float16"] = Field(
        "bfloat16", description="precision of base weights and activations; float16 needs a GPU"
    )
    attention: Literal["auto", "eager", "sdpa", "segmented", "varlen", "flash_attention_2"] = Field(
        "auto",
        description="auto: on a GPU flash_attention_2 where installed, else varlen, then sdpa; on a CPU segmented",
    )
    activation_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute each layer in the backward pass; auto: as many of them as free memory asks for, which a "
        "run keeps",
    )
    compile: bool = Field(False, description="torch.compile the model body")
    liger: Annotated[bool, ADDED] = Field(
        False, description="norms and gates by Liger's kernels while it trains; needs a GPU and lrft[liger]"
    )


class TrainableSection(Section):
    """What trains. A plain string, or a list of patterns, is short for `{weights: ...}`."""

    weights: Literal["adapter", "full"] | list[str] = Field(
        "adapter",
        description="adapter: the base stays frozen; full: every base weight; or patterns of base parameters that "
        "train beside the adapter, such as `*norm.weight`",
    )
    update: Literal["in_place", "master", "stochastic"] = Field(
        "in_place",
        description="how bfloat16 base weights are updated: in place, rounded to nearest; through a float32 master "
        "copy (4 more bytes a number); or in place with stochastic rounding",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"weights": value} if isinstance(value, str | list) else value


class EvalSection(Section):
    """What `lrft eval` runs."""

    tasks: list[Annotated[MethodConfig, Choice(TASKS)]] = Field(
        default_factory=list, description="tasks, by name or with settings"
    )
    limit: Annotated[int | None, DECIDES_ROWS] = Field(
        None, gt=0, description="score only the first so many rows, of several sources of each"
    )
    at_end: Annotated[bool | None, ADDED, Before(False)] = Field(
        None,
        description="score at the end of a training, as lrft eval does after it; by default what `tasks` names, or the "
        "held-out loss, unless the last step has scored it",
    )
    batch_tokens: int = Field(8192, gt=0, description="tokens of an evaluation batch, padding included")


class ExportSection(Section):
    """What `lrft merge` writes."""

    onto: Literal["dequantized", "original"] = Field(
        "dequantized", description="merge onto the base seen in training, or onto the original weights"
    )
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="by default model.dtype"
    )
    rounding: Literal["stochastic", "nearest", "feedback"] | None = Field(
        None,
        description="how changed weights reach a dtype below float32. stochastic, the default: right on average, and "
        "the same every time; nearest: erases changes below half a step; feedback: later columns of a layer take "
        "back the errors of earlier ones, as measured on training rows",
    )
    calibration_rows: int = Field(48, gt=0, description="training rows that rounding: feedback measures on")
    shard_size: str = Field(
        "5GB", pattern=r"^\d+(\.\d+)?[KMG]B$", description="largest file of the merged weights"
    )
    tolerance: float = Field(
        0.05,
        gt=0,
        description="largest mean KL divergence from the adapter, and largest loss difference, in nats per token",
    )
    fidelity_rows: int = Field(8, gt=0, description="held-out rows the merged model is compared on")


class LoggingSection(Section):
    """Where numbers go beside metrics.jsonl."""

    every: int | None = Field(
        None, gt=0, description="optimizer steps between printed lines; null for about a hundred lines a run"
    )
    wandb: str | None = Field(None, description="Weights & Biases project; null for none")
    tensorboard: Annotated[bool | str, ADDED] = Field(
        False,
        description="true: TensorBoard's files in the run folder; or a folder that holds one for every run",
    )
    mlflow: Annotated[str | None, ADDED] = Field(None, description="MLflow experiment; null for none")
    trackio: Annotated[str | None, ADDED] = Field(None, description="Trackio project; null for none")
