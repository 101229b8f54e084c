"""What a recipe section is: a strict, frozen pydantic model. No torch here: recipes are checked without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from lrft.registry.errors import DamagedFile, Problem
from lrft.registry.json import Json

if TYPE_CHECKING:
    from lrft.registry.declared import Declaration

ADDED = "added"
"""Marks a field younger than the first release: while it has its default, a recipe has the hash that it had without."""


@dataclass(frozen=True)
class Before:
    """The default that an `ADDED` field had before: recipes with it keep the hash that they had, and what it means."""

    value: object


MODEL_OR_RUN = "a model or a run"
"""Marks a setting that names another model: a run, one of its checkpoints, a recipe, or a model by path or hub id."""

MOST_COUNTED = 10**12  # of anything: tokens of a stream, steps, rows
LARGEST, SMALLEST = 1e30, 1e-30  # of what is measured; a float32 holds them with room for a product


class Section(BaseModel):
    """A recipe section: unknown keys are refused, values are not coerced, nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Whatever a setting counts or measures, no machine can mean a number beyond these."""
        check_meant(value)
        return value

    def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
        """Refuse settings that do not fit into a run of so many steps; a section that counts steps overrides this.

        Asked of every section before a run is begun, and by a dry run. No run that fits becomes too short by being
        longer, so a recipe that names the most steps it may have is asked as soon as it is read.

        Args:
            ranks: the rank of every adapted site; empty where it is not known yet.

        Raises:
            RecipeError: at the setting, with what would fit.
        """


Settings = TypeVar("Settings", bound=Section)


def read_settings(kind: type[Settings], values: Json, file: str, of: str) -> Settings:
    """The settings of `of` that lrft wrote to a file.

    Raises:
        DamagedFile: they are none by now; names the first key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DamagedFile(file, f"{of} has settings that are none ({key}: {first['msg']})") from None


def check_meant(value: object) -> None:
    """Refuse numbers that nothing can be counted or computed with, also inside lists and mappings.

    Raises:
        ValueError: says the bound.
    """
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            check_meant(item)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_COUNTED:
        raise ValueError(f"must be at most {MOST_COUNTED:,} in size, not {_digits(value)}")
    elif isinstance(value, float) and value == 0 and math.copysign(1, value) < 0:
        raise ValueError("must be 0 without a sign, not -0.0")
    elif isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(f"must be 0, or from {SMALLEST:g} to {LARGEST:g} in size, not {value:g}")


def _digits(value: int) -> str:
    text = str(value) if value.bit_length() < 4000 else f"a number of {value.bit_length()} bits"
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} digits)"


class RecipeView(Protocol):
    """A recipe as a method's settings see it: values by dotted key, defaults included, axes that are null as None."""

    def __getitem__(self, key: str) -> Json:
        """The value at `train.clip`; of a key that is wrong already nobody gets an answer."""

    def declared(self, axis: str) -> Declaration | None:
        """What is declared of the method chosen on an axis; None where the axis is null."""

    def that_provide(self, axis: str, trait: str) -> list[str]:
        """The methods of an axis that provide a trait."""


class MethodConfig(Section):
    """The settings of one method. A method nests its own subclass, named `Config`."""

    method: str = ""

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """What of the other sections these settings cannot work with, though every section is valid for itself.

        A rule about a setting of the method stands here; rules about what kinds of parts fit together are traits.
        """
        return iter(())
