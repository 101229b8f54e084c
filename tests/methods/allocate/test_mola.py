"""MoLA's expert counts by layer."""

from __future__ import annotations

import pytest

from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.methods.adapters.mola import MoLA as Adapter
from lrft.methods.allocate.mola import MoLA
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError

LINEARS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
}
LINEARS |= {"self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (4096, 11008), "mlp.up_proj": (4096, 11008)}
LINEARS |= {"mlp.down_proj": (11008, 4096)}


def plan(layers: int, **settings) -> dict[str, SitePlan]:
    config = Adapter.Config(method="mola", **settings)
    names = [
        (f"model.layers.{layer}.{leaf}", shape) for layer in range(layers) for leaf, shape in LINEARS.items()
    ]
    return {name: SitePlan(Site(name, *shape), config) for name, shape in names}


def counts(layers: int, **settings) -> list[int]:
    planned = MoLA(MoLA.Config(method="mola", **settings)).plan(plan(layers), None)
    return [planned[f"model.layers.{layer}.mlp.up_proj"].config.experts for layer in range(layers)]


@pytest.mark.parametrize(
    ("shape", "bands"),
    [
        ("inverted_triangle", [2, 4, 6, 8]),
        ("triangle", [8, 6, 4, 2]),
        ("hourglass", [8, 2, 2, 8]),
        ("rectangle", [5, 5, 5, 5]),
    ],
)
def test_the_published_shapes_over_32_layers(shape, bands):
    assert counts(32, shape=shape) == [count for count in bands for _ in range(8)]


def test_all_linears_of_a_layer_get_the_same_number():
    planned = MoLA(MoLA.Config(method="mola")).plan(plan(32), None)
    for layer in (0, 15, 31):
        found = {e.config.experts for name, e in planned.items() if name.startswith(f"model.layers.{layer}.")}
        assert len(found) == 1


def test_layers_that_do_not_divide_make_bands_that_differ_by_one():
    found = counts(30)
    assert [found.count(count) for count in (2, 4, 6, 8)] == [8, 7, 8, 7]
    assert found == sorted(found)
    assert counts(2) == [2, 6]


def test_a_llama_7b_trains_what_the_formula_says():
    planned = MoLA(MoLA.Config(method="mola")).plan(plan(32), None)
    counted = sum(Adapter.count(entry.config, entry.site) for entry in planned.values())
    of_one = sum(8 * (i + o) + i for i, o in LINEARS.values())
    assert counted == 8 * (2 + 4 + 6 + 8) * of_one == 105_635_840


def test_bands_of_ones_own():
    assert counts(4, bands=[3, 7]) == [3, 3, 7, 7]
    with pytest.raises(RecipeError, match=r"allocate\.bands: 5 bands are more than 4 layers"):
        counts(4, bands=[2, 2, 2, 2, 2])


def test_fewer_experts_than_choices_are_refused():
    with pytest.raises(
        RecipeError, match=r"would get 1 experts, but each token is sent to adapter\.top_k = 2"
    ):
        counts(4, bands=[1, 4])


def test_an_adapter_without_a_number_of_experts_is_refused():
    given = plan(4)
    for entry in given.values():
        entry.config = ADAPTERS.settings("lora")
    with pytest.raises(RecipeError, match="takes no number of experts"):
        MoLA(MoLA.Config(method="mola")).plan(given, None)


def test_sites_without_an_adapter_are_left_alone():
    given = plan(8)
    for name, entry in given.items():
        if ".layers.0." in name:
            entry.config = None
    planned = MoLA(MoLA.Config(method="mola", bands=[2, 4, 6, 8, 3, 5, 7])).plan(given, None)
    assert planned["model.layers.0.mlp.up_proj"].config is None
    found = [planned[f"model.layers.{layer}.mlp.up_proj"].config.experts for layer in range(1, 8)]
    assert found == [2, 4, 6, 8, 3, 5, 7]
