"""The recipe: strict sections. A method's own settings live in that method's file, not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from lrft.recipe.data_section import DataSection
from lrft.recipe.federate_section import FederateSection
from lrft.recipe.offload_section import OffloadSection
from lrft.recipe.privacy_section import PrivacySection
from lrft.recipe.sections import (
    DECIDES_ROWS,
    EvalSection,
    ExportSection,
    LoggingSection,
    ModelSection,
    TrainableSection,
)
from lrft.recipe.train_section import TrainSection
from lrft.registry.axes import (
    ADAPTERS,
    ALLOCATORS,
    ANALYSES,
    INITS,
    OBJECTIVES,
    OPTIMIZERS,
    PRUNERS,
    QUANTIZERS,
    RESTARTS,
    SCHEDULES,
    SELECTORS,
)
from lrft.registry.config import (
    ADDED,
    AdapterConfig,
    Choice,
    Field,
    MethodConfig,
    OptimizerConfig,
    ScheduleConfig,
    Section,
    model_validator,
)
from lrft.registry.json import Json


class Recipe(Section):
    """A whole recipe, every default spelled out."""

    model: ModelSection
    quantization: Annotated[MethodConfig, Choice(QUANTIZERS)] = Field(default="none", validate_default=True)
    trainable: TrainableSection = TrainableSection()
    adapter: Annotated[AdapterConfig | None, Choice(ADAPTERS, optional=True)] = Field(
        default="lora", validate_default=True
    )
    init: Annotated[MethodConfig | None, Choice(INITS, optional=True)] = Field(
        default="default", validate_default=True
    )
    allocate: Annotated[MethodConfig, Choice(ALLOCATORS)] = Field(default="uniform", validate_default=True)
    restart: Annotated[MethodConfig | None, Choice(RESTARTS, optional=True)] = None
    select: Annotated[MethodConfig | None, Choice(SELECTORS, optional=True)] = None
    prune: Annotated[MethodConfig | None, Choice(PRUNERS, optional=True), ADDED] = None
    objective: Annotated[MethodConfig, Choice(OBJECTIVES)] = Field(
        default="cross_entropy", validate_default=True
    )
    optimizer: Annotated[OptimizerConfig, Choice(OPTIMIZERS)] = Field(default="adamw", validate_default=True)
    schedule: Annotated[ScheduleConfig, Choice(SCHEDULES)] = Field(default="linear", validate_default=True)
    data: Annotated[DataSection, DECIDES_ROWS]
    train: TrainSection = TrainSection()
    offload: Annotated[OffloadSection, ADDED] = OffloadSection()
    eval: EvalSection = EvalSection()
    analyse: list[Annotated[MethodConfig, Choice(ANALYSES)]] = Field(
        default_factory=list,
        description="what is measured of weights and gradients while the run trains, for result.json",
    )
    export: ExportSection = ExportSection()
    federate: Annotated[FederateSection | None, ADDED] = Field(
        None, description="clients that train apart and are averaged, by lrft federate; null for one training"
    )
    privacy: Annotated[PrivacySection | None, ADDED, DECIDES_ROWS] = Field(
        None, description="differential privacy of the training rows; null for none"
    )
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="before")
    @classmethod
    def _without_an_adapter(cls, value: object) -> object:
        return {**dict.fromkeys(null_axes(value)), **value} if isinstance(value, dict) else value

    def parts(self) -> dict[str, MethodConfig]:
        """Axis -> the chosen method's settings; axes that are null are left out."""
        from lrft.registry.axes import AXES

        return {axis: getattr(self, axis) for axis in AXES if getattr(self, axis) is not None}


def null_axes(plain: Mapping[str, Json]) -> list[str]:
    """Axes that are null when nothing is written for them, in a recipe as written.

    Where every weight trains there is no adapter, and without an adapter there is nothing to initialise.
    """
    trainable = plain.get("trainable")
    weights = trainable.get("weights") if isinstance(trainable, dict) else trainable
    found = [axis for axis in ("restart", "select", "prune") if axis not in plain]
    if "adapter" not in plain and weights == "full":
        found.append("adapter")
    if "init" not in plain and ("adapter" in found or plain.get("adapter", "") is None):
        found.append("init")
    return found
