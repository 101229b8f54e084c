"""Where rows come from: a section of its own, as data, tasks and calibration name their rows alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function

from lrft.registry.section import ADDED, Section

GLOB = "*?["  # characters that make a path stand for several files
COMPRESSED = (".gz", ".zst")
READABLE = tuple(
    f"{kind}{packed}"
    for packed in ("", *COMPRESSED)
    for kind in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
    if not (packed and kind == ".parquet")  # it is compressed inside
)
"""What the names of files end in that `lrft.data` reads."""


def is_glob(source: str) -> bool:
    """Whether a source stands for every file that it matches."""
    return any(mark in source for mark in GLOB)


def names_files(source: str) -> bool:
    """Whether a source is a file or a pattern of files by its looks, and so no folder or hub data set with splits."""
    return is_glob(source) or source.endswith(READABLE)


class Source(Section):
    """Where rows come from: a file, all files of a pattern, a folder, or a hub data set.

    A plain string is short for `{source: ...}`.
    """

    source: str = Field(
        min_length=1,
        description="path of a .json, .jsonl, .csv, .tsv, .parquet or .txt file (text ones also as .gz or .zst), a "
        "pattern such as data/*.jsonl, a folder, or a hub id",
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
    take: Annotated[int | None, ADDED] = Field(
        None, gt=0, description="use only so many rows, drawn by data.seed; of a limit, of those within it"
    )
    row: Annotated[Literal["file", "line"], ADDED] = Field(
        "file", description="what is a row of a .txt file: the whole of it, or every line that is not blank"
    )
    header: Annotated[bool | list[Annotated[str, Field(min_length=1)]], ADDED] = Field(
        True,
        description="of a .csv or .tsv file, whether its first line names the columns; a list names those of a file "
        "without such a line, and false calls them column_1, column_2, ...",
    )
    separator: Annotated[str | None, ADDED] = Field(
        None,
        min_length=1,
        description="what stands between the columns of a .csv or .tsv file, by default a comma or tab; of a .txt file "
        "with row: line and a header: [NAME, ...], what parts a line into these columns",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value


class MixedSource(Source):
    """One of several sources of training rows, and how much of an epoch it is."""

    weight: Annotated[float | None, ADDED] = Field(
        None,
        gt=0,
        description="share of an epoch, relative to the weights of the others; for all of them or none",
    )
    cap: Annotated[int | None, ADDED] = Field(
        None, gt=0, description="at most so many rows an epoch; the next epoch goes on with others"
    )
    repeat: Annotated[float | None, ADDED] = Field(
        None,
        gt=0,
        description="how many times an epoch sees each row, by default once; with 0.5 two epochs see each once",
    )


@dataclass(frozen=True)
class OneOrMore:
    """`Annotated[Source | list[MixedSource], OneOrMore(MixedSource)]`: a section, or a list of them.

    What is wrong in either is reported at its own key, as if there were no other way to write it.
    """

    item: type[Source]
    optional: bool = False

    def parse(self, value: object) -> Any:
        """The source, or the list of sources; None where the key is optional and null is written."""
        if isinstance(value, Source) or (value is None and self.optional):
            return value
        if isinstance(value, list):
            several: Any = Annotated[list[self.item], Field(min_length=1)]  # type: ignore[name-defined]
            return TypeAdapter(several).validate_python(value)
        return Source.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A section or a list; `lrft recipes schema` spells them out."""
        return {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "minItems": 1}]}


def each_source(given: Source | Sequence[Source] | None) -> list[Source]:
    """The sources of a key that holds one, several or none."""
    if given is None:
        return []
    return [given] if isinstance(given, Source) else list(given)


def source_keys(key: str, given: object) -> list[str]:
    """Dotted keys of the sources that stand at `key`, as they are parsed or as written."""
    return [f"{key}.{place}" for place in range(len(given))] if isinstance(given, list) else [key]
