"""The section of a recipe that is trained by many clients: who they are, what they hold, and how they are averaged."""

from __future__ import annotations

from typing import Annotated

from lrft.recipe.sections import DECIDES_ROWS
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Choice, Field, Literal, MethodConfig, Section, model_validator


class PartitionSection(Section):
    """Which rows a client holds. A plain string is short for `{by: ...}`."""

    by: Literal["dirichlet", "column", "even"] = Field(
        "dirichlet",
        description="dirichlet: of every label, shares of the clients drawn from Dirichlet(alpha); column: every value "
        "of a column belongs to one client; even: rows drawn alike",
    )
    alpha: float = Field(0.5, gt=0, description="of dirichlet: the smaller, the less alike the clients are")
    column: str | None = Field(
        None,
        min_length=1,
        description="column of the rows that holds their label; null with dirichlet: ten classes by length in tokens",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"by": value} if isinstance(value, str) else value


class FederateSection(Section):
    """Rounds of a federation. A round is a step of the run: it is what is saved, scored and counted."""

    clients: Annotated[int, DECIDES_ROWS] = Field(gt=0, le=100_000, description="how many clients there are")
    rounds: Annotated[int, DECIDES_ROWS] = Field(gt=0, le=10**6, description="how often they are averaged")
    fraction: Annotated[float, DECIDES_ROWS] = Field(
        1.0, gt=0, le=1, description="share of the clients that train in a round, at least one"
    )
    local_steps: Annotated[int | None, DECIDES_ROWS] = Field(
        None, gt=0, le=10**6, description="optimizer steps of a client in a round; null: local_epochs"
    )
    local_epochs: Annotated[float | None, DECIDES_ROWS] = Field(
        None, gt=0, le=10_000, description="passes of a client over its rows in a round, by default 1"
    )
    partition: Annotated[PartitionSection, DECIDES_ROWS] = Field(
        PartitionSection(), description="which rows a client holds"
    )
    aggregate: Annotated[MethodConfig, Choice(AGGREGATORS)] = Field(
        default="fedavg", validate_default=True, description="what clients send, and how it is averaged"
    )

    @property
    def chosen(self) -> int:
        """How many clients train in a round."""
        return max(1, round(self.fraction * self.clients))
