"""SPAFIT's own statements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.core.stages import SitePlan
from lrft.methods.adapters.lora import LoRA
from lrft.methods.allocate.spafit import SPAFIT
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError

LORA = ADAPTERS.settings("lora", rank=4)


def plan_of(layers, kinds=("q_proj", "v_proj")):
    names = [f"model.layers.{i}.self_attn.{kind}" for i in range(layers) for kind in kinds]
    return {name: SitePlan(Site(name, 8, 8), LORA) for name in names}


def planned(layers, **settings):
    """Layers whose sites keep their adapter."""
    plan = SPAFIT(SPAFIT.Config(method="spafit", **settings)).plan(plan_of(layers), None)
    assert len(plan) == 2 * layers
    kept = [name for name, entry in plan.items() if entry.config is not None]
    assert all(plan[name].config == LORA for name in kept)
    return sorted({int(name.split(".")[2]) for name in kept})


def run_of(layers, trained, adapters_from):
    """A run with adapters in the upper layers, and the base parameters `trained`: name -> role."""
    model = nn.ModuleDict()
    config = LoRA.Config(method="lora", rank=2)
    for index in range(layers):
        if index >= adapters_from:
            site = Site(f"layers.{index}.q", 8, 8)
            model[f"layers_{index}"] = Adapted(QUANTIZERS.get("none")(torch.randn(8, 8)), LoRA(config, site))
    infos = [
        ParamInfo(
            name,
            nn.Parameter(torch.zeros(8)),
            role,
            block=".".join(name.split(".")[:2]) if "." in name else "",
        )
        for name, role in trained.items()
    ]
    run = Run(model, infos, None, None, 10)
    run.sites = [(site.adapter.site.name, site) for _, site in run.sites]
    return run


def test_the_layers_below_the_second_cut_have_no_adapter():
    assert planned(12, biases_from=2, adapters_from=7) == [7, 8, 9, 10, 11]
    assert planned(12, adapters_from=0) == list(range(12))


@pytest.mark.parametrize(
    ("layers", "kept"), [(12, [8, 9, 10, 11]), (30, list(range(20, 30))), (2, [1]), (1, [0])]
)
def test_by_default_the_upper_third_has_adapters(layers, kept):
    assert planned(layers) == kept


def test_a_site_outside_the_layers_keeps_its_adapter():
    plan = plan_of(4) | {"embed_out": SitePlan(Site("embed_out", 8, 8), LORA)}
    decided = SPAFIT(SPAFIT.Config(method="spafit")).plan(plan, None)
    assert decided["embed_out"].config == LORA


def test_biases_train_from_the_first_cut_on_and_no_other_weight_does():
    method = SPAFIT(SPAFIT.Config(method="spafit", biases_from=3, adapters_from=5))
    allowed = {f"layers.{i}.q.bias": "vector" for i in range(3, 9)} | {"norm": "vector", "embed": "embedding"}
    method.start(run_of(9, allowed, 5))
    with pytest.raises(
        RecipeError, match=r"trainable\.weights: layers\.2\.q\.bias trains, but layers below 3"
    ):
        method.start(run_of(9, {**allowed, "layers.2.q.bias": "vector"}, 5))
    with pytest.raises(
        RecipeError, match=r"trainable\.weights: layers\.6\.q\.weight trains, but .* only biases"
    ):
        method.start(run_of(9, {**allowed, "layers.6.q.weight": "matrix"}, 5))


def test_cuts_that_leave_nothing_are_refused():
    with pytest.raises(RecipeError, match=r"allocate\.adapters_from: .*use at most 3"):
        planned(4, adapters_from=4)
    with pytest.raises(RecipeError, match=r"adapter\.targets: no target site"):
        SPAFIT(SPAFIT.Config(method="spafit")).plan({"head": SitePlan(Site("head", 8, 8))}, None)
    with pytest.raises(ValueError, match="use biases_from <= 2"):
        SPAFIT.Config(method="spafit", biases_from=3, adapters_from=2)
