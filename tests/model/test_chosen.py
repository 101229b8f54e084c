"""Sites left out by pattern and by layer: exactly those, what is adapted said, and nothing that names nothing."""

from __future__ import annotations

import pytest

from lrft.build.starting_plan import plan_without_weights
from lrft.core.params import Site
from lrft.model.chosen import choose_sites
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError

LEAVES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.7.w1")
SITES = {
    name: Site(name, 8, 4)
    for name in (*(f"model.layers.{k}.{leaf}" for k in range(12) for leaf in LEAVES), "model.projector")
}


def chosen(**settings):
    config = ADAPTERS.settings("lora", **settings)
    return choose_sites(SITES, config, total=len(SITES) * 32)


def layers_of(sites):
    return sorted({int(name.split(".")[2]) for name in sites})


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("10-", [10, 11]),
        ("7", [7]),
        (7, [7]),
        ([0, "2-3", "11-"], [0, 2, 3, 11]),
        ("11-11", [11]),
    ],
)
def test_layers_are_a_range_a_number_or_a_list_of_these(layers, kept):
    """The number of an expert is none of a layer, and what is in no layer is left out."""
    sites, _ = chosen(layers=layers)
    assert layers_of(sites) == kept and len(sites) == len(LEAVES) * len(kept)


def test_excluded_sites_are_those_that_the_pattern_matches():
    sites, table = chosen(targets=["q_proj", "v_proj"], exclude=["layers.0.*", "layers.1.self_attn.v_proj"])
    assert len(sites) == 24 - 2 - 1
    assert "model.layers.1.self_attn.q_proj" in sites and "model.layers.1.self_attn.v_proj" not in sites
    assert [row.modules for row in table] == [11, 10]
    assert sum(row.share for row in table) == pytest.approx(21 / len(SITES))


def test_both_together_leave_what_neither_takes_out():
    sites, _ = chosen(exclude=["w1"], layers="4-5")
    assert list(sites) == [f"model.layers.{k}.{leaf}" for k in (4, 5) for leaf in LEAVES[:3]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"exclude": ["q_prj"]}, r"'q_prj' matches none of the layers .*did you mean q_proj"),
        ({"targets": ["q_proj"], "exclude": ["v_proj"]}, "'v_proj' matches none"),
        ({"targets": ["q_proj"], "exclude": ["q_proj"]}, "adapter.exclude: leaves none"),
        ({"targets": ["projector"], "layers": 0}, "those it has sites in are no number"),
        ({"layers": "8-12"}, "8-12 names layers .* are 0 to 11"),
        ({"layers": [3, 12]}, "12 names layers"),
        ({"layers": "5-3"}, "5-3 names layers"),
        ({"exclude": ["*"]}, "leaves none of the layers"),
    ],
)
def test_what_names_nothing_or_leaves_nothing_is_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        chosen(**settings)


@pytest.mark.parametrize("layers", ['"a-b"', '"-3"', "-1", '"1-2-3"', "1.5"])
def test_what_is_no_range_is_refused_with_the_recipe(tiny_recipe, layers):
    with pytest.raises(RecipeError, match=r"adapter\.layers"):
        load_recipe(tiny_recipe, [f"adapter.layers={layers}"])


@pytest.fixture(scope="module")
def tiny_recipe(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\ndata: {{train: {path}.jsonl, format: text}}\n"
    )
    path.with_suffix(".yaml.jsonl").write_text('{"text": "a b c"}\n')
    return path


def test_a_recipe_plans_them_and_without_them_keeps_its_hash(tiny_recipe):
    loaded = load_recipe(tiny_recipe, ["adapter.layers=1-", "adapter.exclude=[mlp.*]"])
    plan = plan_without_weights(loaded.recipe, load_model(loaded.recipe.model, meta=True)).plan
    assert sorted(plan) == [f"model.layers.1.self_attn.{k}_proj" for k in "koqv"]
    plain = recipe_hash(load_recipe(tiny_recipe).recipe)
    assert plain == recipe_hash(
        load_recipe(tiny_recipe, ["adapter.layers=null", "adapter.exclude=[]"]).recipe
    )
    assert plain != recipe_hash(loaded.recipe)
