"""PeriodicLoRA: the adapter unloaded into the weight at the end of every stage."""

from __future__ import annotations

import math
from typing import TypedDict

import torch

from lrft.core.adapted import Adapted
from lrft.core.callback import TimedMethod
from lrft.core.run import Run
from lrft.methods.restart._unload import check_renewable, fold_all, moments, reset_moments
from lrft.registry.axes import RESTARTS
from lrft.registry.config import Field, Iterator, Literal, Problem, RecipeView, StagesConfig
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    unloads: int


@RESTARTS.register
class PeriodicLoRA(TimedMethod):
    """Unload the adapter into the weight after every stage, whole or a share of it.

        every `every` steps
        share null or 1:   W <- W + s B A,  A ~ U(-1/sqrt(in), 1/sqrt(in)),  B <- 0
        share m < 1:       W <- W + m s B A,  A <- c A,  B <- c B;  nothing is drawn anew
        then:              a share q of the entries of the optimizer's moments <- 0

    with s the adapter's scale, m = `share`, the share UNLOADED, not the one kept; q = `prune_ratio`. `scaling: sqrt`
    has c = sqrt(1 - m): (1 - m) s B A stays in the adapter, and the function as it was. `scaling: linear` has
    c = 1 - m: (1 - m)^2 s B A stays, so the function loses m (1 - m) s B A at every unload. `reset: random` zeroes
    entries at random, `reset: magnitude` the smallest of each tensor; both leave step counts, and the learning rate;
    `reset: all` forgets the whole state.

    Shapes: W (out, in), A (r, in), B (out, r). Changes nothing at step 0.
    Trains: what the adapter trains. What was unloaded stays in float32 beside the stored weight and is never rounded
    into it: 4 k r (in + out) bytes after k stages, or 4 in out where that is less.
    State: the number of unloads.
    Source: Meng et al., "PeriodicLoRA: Breaking the Low-Rank Bottleneck in LoRA Optimization", 2024, arXiv 2402.16141,
    and a public training code taken for the authors', whose scripts unload m = 0.1 every 250 steps, or all every 300 to
    400 (the attribution is inferred, the paper's values were not to be had).
    Departures: c = 1 - m is that code's at the time of the paper, sqrt(1 - m) its later form and the default here.
    Where A is frozen or a core stands between the factors, one matrix is scaled by c^2. Stages are counted in steps and
    not moved to the ends of epochs; an m that grows or decays is left out. `reset: all` is an addition.
    """

    aliases = {
        "periodic_lora plora": "restart: periodic",
    }
    requires = {"adapters", "mergeable", "beside_base", "foldable"}

    config: Config

    class Config(StagesConfig):
        every: int = Field(300, gt=0, description="optimizer steps of a stage")
        share: float | None = Field(
            None,
            gt=0,
            le=1,
            description="share of the adapter that is unloaded; null for all, and a new start",
        )
        scaling: Literal["sqrt", "linear"] = Field(
            "sqrt", description="what is left in A and B after a share m: times sqrt(1 - m), or times 1 - m"
        )
        reset: Literal["random", "magnitude", "all"] = Field(
            "random",
            description="which moments are zeroed: some at random, the smallest, or all with their step counts",
        )
        prune_ratio: float = Field(0.999, ge=0, lt=1, description="share of each moment that is zeroed")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A share of what can only be unloaded whole."""
            yield from super().clashes(recipe)
            adapter, init = recipe.declared("adapter"), recipe.declared("init")
            if self.share in (None, 1) or adapter is None or init is None:
                return
            if "linear_delta" not in adapter.provides or "undivided" in adapter.provides:
                message = f"only the whole change of {adapter.name} can be unloaded; write null"
                yield Problem("restart.share", message)
            elif "kept_base" not in init.provides:
                message = "only the whole change can be unloaded where the base gave up the start of "
                yield Problem("restart.share", f"{message}{init.name}; write null")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # At share 1 both factors would be scaled by 0, and no gradient leads away from there.
        self.share = None if config.share == 1 else config.share
        self.unloads = 0

    def start(self, run: Run) -> None:
        check_renewable(run)
        if self.share is not None:
            for _, site in run.adapted():
                _check_divisible(site)

    def after_step(self, run: Run) -> None:
        if run.step == 1 and self.config.reset != "all":
            list(moments(run))  # refuses now what it would refuse a stage later
        if run.step % self.config.every or run.step >= run.total_steps:
            return
        if self.share is None:
            fold_all(run)
        else:
            for _, site in run.adapted():
                unload(site, self.share, self.config.scaling)
        reset_moments(run, self.config.reset, self.config.prune_ratio)
        self.unloads += 1
        run.record(restarts=self.unloads)

    def state_dict(self) -> State:
        return {"unloads": self.unloads}

    def load_state_dict(self, state: State) -> None:
        self.unloads = state["unloads"]


@torch.no_grad()
def unload(site: Adapted, share: float, scaling: str = "sqrt") -> None:
    """Move a share (between 0 and 1) of the adapter's change into the base, and scale the factors down.

    Args:
        scaling: `sqrt` keeps the function, `linear` does not.
    """
    site.absorb(share)
    kept = math.sqrt(1 - share) if scaling == "sqrt" else 1 - share
    names, both = _scaled(site)
    for name in names:
        site.adapter.get_parameter(name).mul_(kept if both else kept * kept)


def _scaled(site: Adapted) -> tuple[list[str], bool]:
    """The parameters to scale, and whether they are both factors of the change or one that multiplies it whole."""
    roles, held = site.adapter.roles, site.adapter.named_parameters()
    trained = [(roles[name], name) for name, parameter in held if name in roles and parameter.requires_grad]
    cores = [name for role, name in trained if role == "core"]
    if cores:
        return cores[:1], False
    factors = [(role, name) for role, name in trained if role in ("lora_A", "lora_B")]
    if not factors:  # a change of single entries
        return [name for role, name in trained if role == "sparse"], False
    return [name for _, name in factors], len({role for role, _ in factors}) == 2


def _check_divisible(site: Adapted) -> None:
    """Refuse adapters of whose change no share can be taken.

    Raises:
        RecipeError: the change is not linear, or has a start that belongs to the base.
    """
    provided = site.adapter.provides
    if "linear_delta" not in provided or "undivided" in provided or not _scaled(site)[0]:
        message = f"only the whole change of {site.adapter.name} can be unloaded; write share: null"
        raise RecipeError(message, "restart.share")
    if site.start is not None:
        message = "only the whole change can be unloaded where the base gave up the start; write share: null"
        raise RecipeError(message, "restart.share")
