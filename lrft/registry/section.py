"""What a recipe section is: a strict, frozen pydantic model. No torch here: recipes are checked without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from lrft.registry.errors import Problem
from lrft.registry.json import Json

if TYPE_CHECKING:
    from lrft.registry.declared import Declaration

ADDED = "added"
"""Marks a field younger than the first release: while it has its default, a recipe has the hash that it had without."""


class Section(BaseModel):
    """A recipe section: unknown keys are refused, values are not coerced, nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
        """Refuse settings that do not fit into a run of so many steps; a section that counts steps overrides this.

        Asked of every section before a run is begun, and by a dry run. No run that fits becomes too short by being
        longer, so a recipe that names the most steps it may have is asked as soon as it is read.

        Args:
            ranks: the rank of every adapted site; empty where it is not known yet.

        Raises:
            RecipeError: at the setting, with what would fit.
        """


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
