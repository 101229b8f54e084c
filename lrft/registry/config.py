"""What a method's `Config` is made of, in one import: its base, its fields, and the words of their types.

No torch here: recipes are checked without it.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lrft.registry.axis_configs import (
    AdapterConfig,
    FormatConfig,
    OptimizerConfig,
    PlacedConfig,
    ProjectedConfig,
    ResidualConfig,
    ScheduleConfig,
    StagesConfig,
    check_every,
)
from lrft.registry.choice import Choice, parse_choice
from lrft.registry.column_template import check_template, columns_of
from lrft.registry.drawing_configs import DrawingConfig, RewardConfig
from lrft.registry.errors import Problem
from lrft.registry.section import ADDED, MODEL_OR_RUN, MethodConfig, RecipeView, Section
from lrft.registry.source import MixedSource, OneOrMore, Source

__all__ = [
    "ADDED",
    "MODEL_OR_RUN",
    "SVD_ITERATIONS",
    "AdapterConfig",
    "Annotated",
    "Any",
    "Choice",
    "DrawingConfig",
    "Field",
    "FormatConfig",
    "Iterator",
    "Literal",
    "MethodConfig",
    "MixedSource",
    "OneOrMore",
    "OptimizerConfig",
    "PlacedConfig",
    "Problem",
    "ProjectedConfig",
    "RecipeView",
    "ResidualConfig",
    "RewardConfig",
    "SVDIterations",
    "ScheduleConfig",
    "Section",
    "Sequence",
    "Source",
    "StagesConfig",
    "check_every",
    "check_template",
    "columns_of",
    "model_validator",
    "parse_choice",
]

SVDIterations = Annotated[int, Field(ge=0)] | Literal["exact"] | None
"""`niter` of a start by an SVD, as `lrft.ops.linalg.truncated_svd` takes it."""
SVD_ITERATIONS = Field(
    None,
    description="subspace iterations of a randomised SVD, or exact; null: exact up to 2,048 rows or columns, "
    "16 iterations above",
)
