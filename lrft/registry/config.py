"""What a recipe section is: a strict, frozen pydantic model. No torch here: recipes are checked without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_plain_validator_function

from lrft.registry.did_you_mean import did_you_mean, listed
from lrft.registry.errors import Problem, RecipeError
from lrft.registry.json import Json

if TYPE_CHECKING:
    from lrft.registry.declared import Declaration
    from lrft.registry.registry import Registry

BASE_ROLES = ("matrix", "embedding", "head", "vector")  # of parameters of the base model

__all__ = [
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

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """Moments that some setting zeroes one by one, of an optimizer that has no such entries."""
        optimizer = recipe.declared("optimizer")
        zeroed = getattr(self, "reset", None) in ("random", "magnitude")
        if zeroed and optimizer is not None and "entry_moments" not in optimizer.provides:
            others = listed(recipe.that_provide("optimizer", "entry_moments"), "or")
            message = (
                f"{optimizer.name} keeps moments that cannot be zeroed one by one; write all, or choose "
            )
            yield Problem("restart.reset", f"{message}optimizer {others}")


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

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """What updates in the backward pass cannot be combined with."""
        if not self.per_layer:
            return
        optimizer = recipe.declared("optimizer")
        if optimizer is not None and "per_parameter" not in optimizer.provides:
            message = f"the update of {optimizer.name} looks at several parameters at once; write false"
            yield Problem("optimizer.per_layer", message)
        reasons = {
            "train.clip": (None, "no global norm exists when each gradient is freed at once; write null"),
            "train.gradient_accumulation": (
                1,
                "a gradient that is freed at once cannot be accumulated; write 1",
            ),
        }
        for key, (needed, message) in reasons.items():
            if recipe[key] != needed:
                yield Problem(key, f"{message} (optimizer.per_layer)")
        if recipe["model.dtype"] == "float16":
            yield Problem(
                "optimizer.per_layer", "float16 needs its gradients unscaled together; write bfloat16"
            )


class ProjectedConfig(OptimizerConfig):
    """What every optimizer accepts that projects gradients; a subclass says the roles in its field `project`."""

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """Roles of which none trains."""
        yield from super().clashes(recipe)
        roles: list[str] = getattr(self, "project", [])
        base = recipe["trainable.weights"] != "adapter"
        if not [role for role in roles if (base if role in BASE_ROLES else recipe["adapter"] is not None)]:
            remedy = "[matrix]" if base else "[lora_A, lora_B], or write trainable: full"
            message = (
                f"none of {', '.join(roles)} trains here, so nothing would be projected; name roles that do: "
            )
            yield Problem("optimizer.project", message + remedy)


class ScheduleConfig(MethodConfig):
    """What every schedule's section accepts."""

    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps spent warming up")
    warmup_steps: int | None = Field(None, ge=0, description="steps of warm-up, instead of the ratio")
    floor: float = Field(
        0.0, ge=0, lt=1, description="share of the rate that a schedule which falls ends with"
    )

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil(self.warmup_ratio * total_steps)

    def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
        """Refuse a warm-up that never ends."""
        if self.warmup_steps is not None and self.warmup_steps > total_steps:
            message = (
                f"{self.warmup_steps} steps of warm-up are more than the run's {total_steps}; write at most "
            )
            raise RecipeError(f"{message}{total_steps}", "schedule.warmup_steps")

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """Two lengths of one warm-up."""
        if self.warmup_steps is not None and self.warmup_ratio:
            message = "says the length of the warm-up, and so does schedule.warmup_ratio; set one of them to null or 0"
            yield Problem("schedule.warmup_steps", message)


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
    def _from_string(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Choice:
    """`Annotated[AdapterConfig, Choice(ADAPTERS)]`: `dora`, or `{method: dora, rank: 8}`, parsed by its own `Config`.

    Staying in the annotation's metadata, it is also where messages and the JSON schema find the registry.
    """

    registry: Registry
    optional: bool = False

    def parse(self, value: object) -> MethodConfig | None:
        """The method's settings; None where the choice is optional and null is written."""
        return None if value is None and self.optional else parse_choice(self.registry, value)

    def __get_pydantic_core_schema__(self, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Each method's name, or its settings; `lrft recipes schema` spells the settings out."""
        names = self.registry.names()
        return {"anyOf": [{"enum": names}, {"type": "object", "properties": {"method": {"enum": names}}}]}


def parse_choice(registry: Registry, value: object) -> MethodConfig:
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
