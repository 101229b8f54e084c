"""MoLA's allocation: how many experts a layer gets, from low layers to high."""

from __future__ import annotations

from lrft.core.in_layer import in_layer
from lrft.core.stages import Evidence, Plan, Planner, SitePlan
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Annotated, Field, Literal, MethodConfig
from lrft.registry.errors import RecipeError

SHAPES = {
    "inverted_triangle": [2, 4, 6, 8],
    "triangle": [8, 6, 4, 2],
    "hourglass": [8, 2, 2, 8],
    "rectangle": [5, 5, 5, 5],
}


@ALLOCATORS.register
class MoLA(Planner):
    """Experts per layer of a mixture, in equal bands from low layers to high.

        E_l = bands[floor(l n / L)],  l = 0 ... L - 1

    with L the layers that carry adapters, n the bands, E_l the experts at each site of layer l. `bands` lists the
    experts of each band, low layers first, or `shape` names them:

        shape: inverted_triangle    2, 4, 6, 8
        shape: triangle             8, 6, 4, 2
        shape: hourglass            8, 2, 2, 8
        shape: rectangle            5, 5, 5, 5

    With 32 layers these are four bands of 8 layers.

    Shapes: those of the adapter, with E_l experts. Nothing changes at step 0.
    Trains: E_l (r (in + out) + in) numbers at a site (out, in) of `adapter: mola`.
    Source: Gao et al., "Higher Layers Need More LoRA Experts", 2024, arXiv 2402.08562.
    Departures: where the bands do not divide the layers their sizes differ by one (the paper has 32 layers); bands are
    cut over the layers that carry adapters.
    Advice: `shape: inverted_triangle` is the paper's best at an equal total.
    """

    requires = {"expert_count"}

    config: Config

    class Config(MethodConfig):
        shape: Literal["inverted_triangle", "triangle", "hourglass", "rectangle"] = "inverted_triangle"
        bands: list[Annotated[int, Field(gt=0)]] | None = Field(
            None, min_length=1, description="experts of each band, low layers first, instead of a shape"
        )

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan with `experts` set by layer.

        Raises:
            RecipeError: an adapted site stands in no layer or its adapter has no number of experts, there are more
                bands than layers, or a layer would get fewer experts than tokens are sent to.
        """
        bands = self.config.bands or SHAPES[self.config.shape]
        layers = {name: _layer(name) for name, entry in plan.items() if entry.config is not None}
        order = sorted(set(layers.values()))
        if self.config.bands is not None and len(bands) > len(order):
            raise RecipeError(f"{len(bands)} bands are more than {len(order)} layers", "allocate.bands")
        counts = {name: bands[order.index(at) * len(bands) // len(order)] for name, at in layers.items()}
        return plan | {name: _with(plan[name], count) for name, count in counts.items()}


def _layer(name: str) -> int:
    found = in_layer(name)
    if found is None:
        raise RecipeError(f"{name} stands in no numbered layer; leave it out of adapter.targets", "allocate")
    return found.number


def _with(entry: SitePlan, count: int) -> SitePlan:
    name = entry.site.name
    if entry.setting("experts") is None:
        raise RecipeError(
            f"the adapter at {name} takes no number of experts; use a mixture that trains its own", "allocate"
        )
    top_k = entry.setting("top_k") or 1
    if count < top_k:
        raise RecipeError(
            f"{name} would get {count} experts, but each token is sent to adapter.top_k = {top_k}; "
            f"use bands of at least {top_k}",
            "allocate",
        )
    return entry.changed(experts=count)
