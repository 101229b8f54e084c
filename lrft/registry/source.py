"""Where rows come from: a section of its own, as data, tasks and calibration name their rows alike."""

from __future__ import annotations

from pydantic import Field, model_validator

from lrft.registry.section import Section


class Source(Section):
    """Where rows come from: a file, a folder of split files, or a hub data set.

    A plain string is short for `{source: ...}`.
    """

    source: str = Field(
        min_length=1, description="path of a .json, .jsonl, .csv or .parquet file, a folder, or a hub id"
    )
    name: str | None = Field(None, description="configuration of a hub data set (`main` for openai/gsm8k)")
    split: str | None = Field(
        None, description="split of a hub data set or folder; by default train, or test"
    )
    revision: str | None = Field(None, description="commit or tag of a hub data set")
    limit: int | None = Field(None, gt=0, description="use only the first so many rows")
    stream: int | None = Field(
        None, gt=0, description="read only the first so many rows of a hub data set, and download no others"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value
