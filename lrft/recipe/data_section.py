"""The section of a recipe that says where its rows come from, how several sources are mixed, and what is held out."""

from __future__ import annotations

from typing import Annotated

from lrft.registry.axes import FORMATS
from lrft.registry.config import (
    Choice,
    Field,
    FormatConfig,
    Literal,
    OneOrMore,
    Section,
    Source,
    model_validator,
)
from lrft.registry.own_format import HeldOutSource, TrainSource
from lrft.registry.section import ADDED
from lrft.registry.source import names_files


class MixSection(Section):
    """How several sources of `data.train` share an epoch."""

    temperature: float = Field(
        1.0,
        gt=0,
        description="shares are as weights (by default numbers of rows) to the power of 1 / this: above 1, small "
        "sources are seen more often",
    )
    rows: Literal["together", "first_exhausted", "all_exhausted"] | Annotated[int, Field(gt=0)] = Field(
        "together",
        description="rows of an epoch by those shares: as many as the sources have together; as many as see none of "
        "them twice; as many as see all of them whole; or a number",
    )
    order: Annotated[Literal["mixed", "in_turn", "alternating"], ADDED] = Field(
        "mixed",
        description="in_turn: the sources are tasks, learnt one after the other, of which each is scored after every "
        "one of them; alternating: every step has rows of one source, and they take turns",
    )


class DataSection(Section):
    """Rows, how they become text, and what to do with long ones.

    A plain string is one source for both splits, or where it is a file the training rows alone.
    """

    train: Annotated[Source | list[TrainSource], OneOrMore(TrainSource)] = Field(
        description="rows that are trained on: a source, or a list of sources"
    )
    eval: Annotated[Source | list[HeldOutSource] | None, OneOrMore(HeldOutSource, optional=True)] = Field(
        None,
        description="held-out rows, a source or a list of sources; scored every `train.eval_every` steps and by lrft "
        "eval",
    )
    split: Annotated[Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(gt=0)] | None, ADDED] = Field(
        None,
        description="share, or number, of the training rows that are held out instead of data.eval; rows that are "
        "rendered alike stay on one side",
    )
    seed: Annotated[int, ADDED] = Field(
        0,
        ge=0,
        lt=2**31,
        description="which rows `split` and `take` draw; the order of training is train.seed's",
    )
    dedup: Annotated[Literal["exact", "near"] | None, ADDED] = Field(
        None,
        description="training rows that are left out because an earlier one says the same: in every character, or "
        "nearly too",
    )
    drop_overlap: Annotated[bool, ADDED] = Field(
        False,
        description="leave out training rows that nearly repeat a held-out row, or ask word for word what one asks",
    )
    near_share: Annotated[float, ADDED] = Field(
        0.8,
        ge=0.5,
        le=1,
        description="share of their runs of three words that two rows have in common, from which `dedup: near` and "
        "`drop_overlap` take one for the other",
    )
    mix: Annotated[MixSection, ADDED] = Field(
        default=MixSection(), description="how several sources of training rows share an epoch"
    )
    format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
        None,
        description="how a row becomes a prompt and what is learnt from it; by default guessed from the columns, and "
        "told",
    )
    template: Annotated[str | None, ADDED] = Field(
        None,
        min_length=1,
        description="chat template that conversations are written in, and that is saved with the adapter: chatml, "
        "gemma, llama3, mistral, plain, zephyr, or a file of Jinja; by default the tokenizer's own",
    )
    date: str | None = Field(
        None,
        pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        description="day that chat templates which ask for the date are told, as 2026-11-28; by default the day the "
        "run begins, which its record keeps",
    )
    too_long: Literal["error", "drop", "truncate_left", "truncate_right", "windows"] = Field(
        "error",
        description="what happens to rows longer than train.max_length; windows: a document is learnt in several rows "
        "that overlap",
    )
    stride: Annotated[int | None, ADDED] = Field(
        None,
        gt=0,
        description="tokens by which each of the windows begins after the one before; by default half of "
        "train.max_length",
    )
    features: Annotated[list[Annotated[str, Field(min_length=1)]], ADDED] = Field(
        [],
        description="columns that say the features of a row, such as its language and its task, for adapters that go "
        "by them; every row has each, null for none",
    )
    allow_empty_targets: bool = Field(
        False, description="skip rows without a supervised token instead of stopping"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return {"train": value} if names_files(value) else {"train": value, "eval": value}

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval is not None or self.split is not None
