"""The section `train`: the loop."""

from __future__ import annotations

from typing import Annotated

from lrft.recipe.inside_sections import Extension
from lrft.recipe.sections import DECIDES_ROWS
from lrft.registry.config import Field, Literal, Section
from lrft.registry.section import ADDED


class TrainSection(Section):
    """The loop: how long, how much at a time, how often to save and score."""

    max_steps: Annotated[int | None, DECIDES_ROWS] = Field(
        None, gt=0, le=10**9, description="optimizer steps; with epochs too, whichever ends first"
    )
    epochs: Annotated[float | None, DECIDES_ROWS] = Field(
        None, gt=0, le=10_000, description="passes over the data; 1 when max_steps is not given either"
    )
    stop_below: Annotated[float | None, DECIDES_ROWS] = Field(
        None,
        gt=0,
        description="end the run once the training loss, smoothed over ten steps, is at or below this; the schedule "
        "still goes by max_steps",
    )
    batch_size: Annotated[int, DECIDES_ROWS] = Field(
        4, gt=0, le=10**6, description="rows of a micro-batch; with packing a row is max_length tokens"
    )
    gradient_accumulation: Annotated[int, DECIDES_ROWS] = Field(
        1, gt=0, le=10**6, description="micro-batches per optimizer step and process"
    )
    max_length: Annotated[int, DECIDES_ROWS] = Field(512, gt=1, le=10**8, description="tokens of a row")
    packing: Annotated[bool | None, DECIDES_ROWS] = Field(
        None,
        description="fill rows with several examples that do not see each other; by default wherever the model keeps "
        "them apart, which is tried on it. Where its attention computes each example by itself, nothing is padded "
        "either way",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="every draw of the run follows from it and the step")
    clip: float | None = Field(1.0, gt=0, description="largest global gradient norm; null for no clipping")
    neftune: Annotated[float | None, ADDED] = Field(
        None,
        gt=0,
        description="alpha of uniform noise on the input embeddings in training, at most alpha / sqrt(L d), in a "
        "document of L tokens with embeddings d wide; null for none",
    )
    save_every: int = Field(
        50, gt=0, description="optimizer steps between checkpoints; the last step is always saved"
    )
    eval_every: int | None = Field(
        None, gt=0, description="optimizer steps between scores of data.eval; the last step is always scored"
    )
    eval_tasks_every: Annotated[int | None, ADDED] = Field(
        None,
        gt=0,
        description="optimizer steps between scores of eval.tasks, the first eval.limit rows of each; the last step is "
        "always scored",
    )
    metric: Annotated[str, DECIDES_ROWS, ADDED] = Field(
        "loss",
        min_length=1,
        description="the score that says which step is the best: loss, of data.eval every train.eval_every steps, or "
        "TASK.SCORE of one of eval.tasks, such as gsm8k.exact_match",
    )
    patience: Annotated[int | None, DECIDES_ROWS, ADDED] = Field(
        None,
        gt=0,
        description="end the run once so many scores of train.metric in a row were no better than the best; the "
        "schedule still goes by max_steps",
    )
    extended: Annotated[list[Extension], ADDED, DECIDES_ROWS] = Field(
        [],
        description="steps added after the planned end, written by lrft train RUN --resume --more-steps N",
    )
    keep_last: int = Field(2, gt=0, description="how many newest checkpoints stay, beside the best one")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where one is visible")
    shard_base: Annotated[bool, ADDED] = Field(
        False,
        description="several processes keep a part of every frozen linear weight each, and gather it for every use",
    )
    deterministic: Annotated[bool, ADDED] = Field(
        False,
        description="train with operations alone that give the same bits every time on a machine, and refuse others; "
        "slower on a GPU, and nothing changes on a CPU",
    )
    tf32: Annotated[bool, ADDED] = Field(
        False,
        description="in training, round the factors of float32 products on a GPU to 10 bits of mantissa: faster, less "
        "exact; other precisions, and a CPU, know nothing of it",
    )
