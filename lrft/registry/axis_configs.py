"""What the settings of every method of an axis accept, whatever the method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from lrft.registry.did_you_mean import listed
from lrft.registry.errors import Problem, RecipeError
from lrft.registry.json import Json
from lrft.registry.section import ADDED, MethodConfig, RecipeView

Layers = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d+(-\d*)?$")]
MOST_RATE = 1_000_000  # no step that long leads anywhere, whatever it is multiplied with
BASE_ROLES = ("matrix", "embedding", "head", "vector")  # of parameters of the base model
FACTORS = ("lora_A", "lora_B", "core")  # of adapters, the matrices that are projected


class AdapterConfig(MethodConfig):
    """What every adapter's section accepts."""

    targets: str | list[str] = Field(
        "all-linear", description="`all-linear`, or patterns matched against the end of module names"
    )
    exclude: Annotated[list[str], ADDED] = Field(
        [], description="patterns, read as those of `targets`, of targeted modules that are left out"
    )
    layers: Annotated[Layers | list[Layers] | None, ADDED] = Field(
        None,
        description="layers of the model that are adapted, from 0 on: `0-15`, `16-`, a number, or a list of these; by "
        "default all",
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

    def deciding(self, name: str) -> dict[str, Json]:
        """The settings that decide what an adapter computes at the site called `name`, the same in other words too."""
        return {key: value for key, value in self.model_dump().items() if key not in TRAINING_ONLY}


TRAINING_ONLY = {*AdapterConfig.model_fields, "dropout"}  # change no function of a trained adapter


class PlacedConfig(AdapterConfig):
    """What every adapter accepts whose places an init of the same name chooses."""

    def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
        """Another init, which would leave the places where they do not belong."""
        adapter, init = recipe.declared("adapter"), recipe.declared("init")
        if adapter is not None and init is not None and init.name != adapter.name:
            message = f"does not choose what trains of every weight, as {adapter.name} needs it; write init: "
            yield Problem("init.method", message + adapter.name)


class ResidualConfig(MethodConfig):
    """What every init accepts whose start the base gives up."""

    residual: Literal["rewrite", "anchor"] | None = Field(
        None,
        description="rewrite: the base stores W - delta_0, rounded anew; anchor: the base keeps W and the frozen start "
        "is subtracted beside it; by default anchor on quantized bases, rewrite on dense ones",
    )


def check_every(every: int, total_steps: int, key: str, so: str = "", other: str = "") -> None:
    """Refuse so many steps between two events in a run that ends before the second.

    Args:
        key: the setting, such as `restart.every`.
        so: what would come of it, after the numbers.
        other: what else would work, after the remedy.

    Raises:
        RecipeError: it has no more steps.
    """
    if every >= total_steps:
        remedy = f"use at most {total_steps - 1}" if total_steps > 1 else "train for more steps"
        message = f"{every} steps are no less than the whole run's {total_steps}{so}; {remedy}{other}"
        raise RecipeError(message, key)


class StagesConfig(MethodConfig):
    """What every restart accepts that comes after a fixed number of steps."""

    every: int = Field(gt=0)

    def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
        """Refuse a run in which no restart would happen."""
        check_every(self.every, total_steps, "restart.every")

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

    lr: float = Field(2e-4, gt=0, le=MOST_RATE, description="learning rate at the top of the schedule")
    weight_decay: float = Field(
        0.0, ge=0, le=MOST_RATE, description="decay of every trained number, as the optimizer has it"
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
        base, adapter = recipe["trainable.weights"] != "adapter", recipe.declared("adapter")
        known = frozenset() if adapter is None else adapter.roles
        if not [role for role in roles if (base if role in BASE_ROLES else known is None or role in known)]:
            there = [role for role in FACTORS if role in known] if known else FACTORS[:2]
            named = (
                f"[{', '.join(there)}], or write trainable: full" if there else "[matrix] of trainable: full"
            )
            remedy = "[matrix]" if base else named
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
    tools: Annotated[str | None, ADDED] = Field(
        None,
        min_length=1,
        description="file of a JSON list of tools that the chat template is given with rows that bring none",
    )
