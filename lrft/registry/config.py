"""What a recipe section is: a strict, frozen pydantic model. No torch here: recipes are checked without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_plain_validator_function

from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError

if TYPE_CHECKING:
    from lrft.registry.registry import Registry

__all__ = [
    "AdapterConfig",
    "Annotated",
    "Any",
    "Choice",
    "Field",
    "FormatConfig",
    "Literal",
    "MethodConfig",
    "OptimizerConfig",
    "ResidualConfig",
    "Section",
    "Sequence",
    "Source",
    "StagesConfig",
    "model_validator",
]


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


class MethodConfig(Section):
    """The settings of one method. A method nests its own subclass, named `Config`."""

    method: str = ""


class AdapterConfig(MethodConfig):
    """What every adapter's section accepts."""

    targets: str | list[str] = Field(
        "all-linear", description="`all-linear`, or patterns matched against the end of module names"
    )
    dtype: Literal["bfloat16", "float32"] | None = Field(
        None, description="precision the adapter computes and is exported in; by default the model's"
    )

    def site_patterns(self) -> dict[str, list[str]]:
        """Settings that hold patterns of site names, by key; one that matches no site is an error."""
        return {}

    def for_site(self, name: str) -> AdapterConfig:
        """The settings used at the site called `name`; patterned settings override this."""
        return self


class ResidualConfig(MethodConfig):
    """What every init accepts whose start the base gives up."""

    residual: Literal["rewrite", "anchor"] | None = Field(
        None,
        description="rewrite: the base stores W - delta_0, rounded anew; anchor: the base keeps W and the frozen start "
        "is subtracted beside it; by default anchor on quantized bases, rewrite on dense ones",
    )


class StagesConfig(MethodConfig):
    """What every restart accepts that comes after a fixed number of steps."""

    every: int = Field(gt=0)

    def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
        """Refuse a run in which no restart would happen."""
        if self.every >= total_steps:
            remedy = f"use at most {total_steps - 1}" if total_steps > 1 else "train for more steps"
            message = f"{self.every} steps are no less than the whole run's {total_steps}; {remedy}"
            raise RecipeError(message, "restart.every")


class OptimizerConfig(MethodConfig):
    """What every optimizer's section accepts."""

    lr: float = Field(2e-4, gt=0, description="learning rate at the top of the schedule")
    weight_decay: float = Field(
        0.0, ge=0, description="decay of every trained number, as the optimizer has it"
    )
    per_layer: bool = Field(
        False,
        description="update each parameter in the backward pass and free its gradient at once; no clipping, no "
        "accumulation",
    )


class FormatConfig(MethodConfig):
    """What every format's section accepts."""

    ignore: list[str] = Field(
        default_factory=list,
        description="columns of a row and fields of its messages that are left out on purpose; what means something "
        "and reaches no text is refused otherwise",
    )


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
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Choice:
    """`Annotated[Any, Choice(REGISTRY)]`: `dora`, or `{method: dora, rank: 8}`, parsed by that method's own `Config`.

    Staying in the annotation's metadata, it is also where messages and the JSON schema find the registry.
    """

    registry: Registry
    optional: bool = False

    def parse(self, value: Any) -> MethodConfig | None:
        """The method's settings; None where the choice is optional and null is written."""
        return None if value is None and self.optional else parse_choice(self.registry, value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """Each method's name, or its settings; `lrft recipes schema` spells the settings out."""
        names = self.registry.names()
        return {"anyOf": [{"enum": names}, {"type": "object", "properties": {"method": {"enum": names}}}]}


def parse_choice(registry: Registry, value: Any) -> MethodConfig:
    """The `Config` of the method that `value` names in `registry`, validated.

    Raises pydantic errors, so that a recipe's problems are collected in one pass.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, dict):
        raise PydanticCustomError(
            "choice", f"expected the name of a {registry.kind} or a section with `method`"
        )
    name = value.get("method")
    if not isinstance(name, str):
        raise PydanticCustomError(
            "choice", f"`method` must name one {registry.kind}: {', '.join(registry.names())}"
        )
    if name not in registry.names():
        # Braces would be read as a template by pydantic, hence the context.
        raise PydanticCustomError(
            "unknown_method",
            "{text}",
            {
                "text": f"unknown {registry.kind} {name!r}{did_you_mean(name, registry.names())}",
                "below": "method",
            },
        )
    return registry.declared(name).config.model_validate(value)
