"""Sources that may say their own format: those of a list."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lrft.registry.axes import FORMATS
from lrft.registry.axis_configs import FormatConfig
from lrft.registry.choice import Choice
from lrft.registry.section import ADDED
from lrft.registry.source import MixedSource, Source

OwnFormat = Annotated[FormatConfig | None, Choice(FORMATS, optional=True), ADDED]
OF_ITS_ROWS = "format of these rows; by default data.format"


class TrainSource(MixedSource):
    """One of several sources of training rows, how much of an epoch it is, and how its rows are read."""

    format: OwnFormat = Field(None, description=OF_ITS_ROWS)


class HeldOutSource(Source):
    """One of several sources of held-out rows, and how its rows are read."""

    format: OwnFormat = Field(None, description=OF_ITS_ROWS)


def own_format(source: Source) -> FormatConfig | None:
    """The format that a source says for itself."""
    return source.format if isinstance(source, TrainSource | HeldOutSource) else None
