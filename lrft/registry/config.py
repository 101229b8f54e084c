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
    ProjectedConfig,
    ResidualConfig,
    ScheduleConfig,
    StagesConfig,
)
from lrft.registry.choice import Choice, parse_choice
from lrft.registry.errors import Problem
from lrft.registry.section import ADDED, MethodConfig, RecipeView, Section
from lrft.registry.source import Source

__all__ = [
    "ADDED",
    "AdapterConfig",
    "Annotated",
    "Any",
    "Choice",
    "Field",
    "FormatConfig",
    "Iterator",
    "Literal",
    "MethodConfig",
    "OptimizerConfig",
    "Problem",
    "ProjectedConfig",
    "RecipeView",
    "ResidualConfig",
    "ScheduleConfig",
    "Section",
    "Sequence",
    "Source",
    "StagesConfig",
    "model_validator",
    "parse_choice",
]
