"""SPAFIT: the higher the layer, the more of it trains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.core.stages import Evidence, Plan, Planner
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Field, MethodConfig, model_validator
from lrft.registry.errors import RecipeError


@ALLOCATORS.register
class SPAFIT(TimedMethod, Planner):
    """Stratified progressive adaptation: frozen layers, layers that train biases, layers with adapters as well.

        layer <  biases_from                     frozen
        biases_from <= layer < adapters_from     biases alone, those that `trainable` names
        layer >= adapters_from                   adapters at the target sites, and biases that `trainable` names

    with layers 0 ... L - 1 from the input upwards, biases_from = `biases_from` (default a third of the way up),
    adapters_from = `adapters_from` (default two thirds). A site's layer is the first number in its name; sites outside
    the layers keep their adapter.

    Shapes: a site (out, in) keeps the adapter section's settings or gets no adapter. Nothing changes at step 0.
    Trains: what the adapter trains from `adapters_from` on, and the biases that the recipe names, in every step.
    State: none.
    Source: Arora and Wang, "SPAFIT: Stratified Progressive Adaptation Fine-tuning for Pre-trained Large Language
    Models", 2024, arXiv 2405.00201.
    Departures: the paper's cuts, ranks and rates were not to be had and it has no code, so this is a reading of its
    abstract; by default the groups are thirds. The paper's models are encoders with biases everywhere; its choice of
    matrices for LoRA is the adapter's `targets`.
    Advice: name the biases as in `trainable: ["layers.[4-9].*bias"]`; a name below its group is an error. Most decoder
    models have no biases: then the middle group is frozen too, or trains what else of one dimension is named, such as
    norm weights.
    """

    requires = {"adapters"}

    config: Config

    class Config(MethodConfig):
        biases_from: int | None = Field(
            None, ge=0, description="first layer whose biases may train; by default a third of the way up"
        )
        adapters_from: int | None = Field(
            None, ge=0, description="first layer with adapters; by default two thirds of the way up"
        )

        @model_validator(mode="after")
        def _ordered(self) -> SPAFIT.Config:
            low, high = self.biases_from, self.adapters_from
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"biases from layer {low} but adapters from layer {high}; use biases_from <= {high}"
                )
            return self

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        _, adapters_from = self.cuts(plan)
        low = [name for name in plan if (layer := _layer(name)) is not None and layer < adapters_from]
        return {**plan, **{name: replace(plan[name], config=None) for name in low}}

    def start(self, run: Run) -> None:
        """Refuse base weights that train outside their group."""
        biases_from, _ = self.cuts([name for name, _ in run.adapted()])
        for info in run.parameters:
            layer = _layer(info.block) if info.block and not info.site else None
            if layer is not None and layer < biases_from:
                message = (
                    f"{info.name} trains, but layers below {biases_from} are frozen (allocate.biases_from)"
                )
                raise RecipeError(f"{message}; use patterns that leave it out", "trainable.weights")
            if layer is not None and info.role != "vector":
                message = f"{info.name} trains, but of the layers only biases do beside the adapters"
                raise RecipeError(f"{message}; use patterns such as *.bias", "trainable.weights")

    def cuts(self, names: Iterable[str]) -> tuple[int, int]:
        """First layer whose biases may train and first layer with adapters, for these sites.

        Raises:
            RecipeError: the sites name no layers, or fewer than the cuts.
        """
        found = [layer for layer in map(_layer, names) if layer is not None]
        if not found:
            raise RecipeError(
                "no target site stands in a numbered layer; choose other targets", "adapter.targets"
            )
        depth = max(found) + 1
        low, high = self.config.biases_from, self.config.adapters_from
        high = max(2 * depth // 3, low or 0) if high is None else high
        low = min(depth // 3, high) if low is None else low
        if high >= depth:
            message = f"no target site stands in layer {high} or above; use at most {depth - 1}"
            raise RecipeError(message, "allocate.adapters_from")
        return low, high


def _layer(name: str) -> int | None:
    """The first number among the parts of a module path."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found.group(1)) if found else None
