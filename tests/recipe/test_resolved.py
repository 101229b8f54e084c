"""The resolved recipe is a recipe again, the same one; hashes and differences follow its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrft.recipe import library
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import ABSENT, compare, decisive_hash, recipe_hash, resolved, with_origins
from lrft.recipe.schema import Recipe
from tests.each import each
from tests.recipe.valid_recipe import VALID, changed

FILES = sorted(path for path in library.folder().rglob("*.yaml") if "tables" not in path.parts)


@each("path", FILES)
def test_every_shipped_recipe_loads_back_equal_from_its_resolved_text(path, folder):
    recipe = load_recipe(path).recipe
    again = folder / "again.yaml"
    again.write_text(resolved(recipe), encoding="utf-8")
    assert load_recipe(again).recipe == recipe


def test_every_default_is_spelled_out_in_the_order_of_the_schema(write):
    text = resolved(load_recipe(write(VALID)).recipe)
    assert list(yaml.safe_load(text)) == list(Recipe.model_fields)
    assert "keep_last: 2" in text and "method: uniform" in text


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
tricky = st.sampled_from(
    ["no", "1e4", "null", "~", "0o7", "2024-01-01", "a: b", "# x", "- x", "{x", "a\nb", "\t", "!x", "&a"]
)
texts = words | tricky
numbers = st.floats(min_value=1e-12, max_value=1e6)  # a rate and an alpha may be no larger


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    alpha=numbers,
    lr=numbers,
    targets=st.lists(texts, min_size=1, max_size=3) | texts,
    pattern=st.dictionaries(texts, st.integers(1, 99), max_size=3),
    project=texts,
    seed=st.integers(0, 2**31 - 1),
    clip=st.none() | numbers,
    prompt=texts,
)
def test_any_recipe_loads_back_equal(folder, alpha, lr, targets, pattern, project, seed, clip, prompt):
    plain = {
        "model": {"name": "owner/model"},
        "adapter": {"method": "lora", "alpha": alpha, "targets": targets, "rank_pattern": pattern},
        "optimizer": {"method": "adamw", "lr": lr},
        "data": {
            "train": "owner/rows",
            "format": {
                "method": "columns",
                "prompt": prompt.replace("{", "").replace("}", ""),
                "completion": "{a}",
            },
        },
        "train": {"seed": seed, "clip": clip},
        "logging": {"wandb": project},
    }
    recipe = Recipe.model_validate(plain)
    path = folder / "recipe.yaml"
    path.write_text(resolved(recipe), encoding="utf-8", newline="")
    again = load_recipe(path).recipe
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe)


def test_the_hash_depends_on_the_meaning_and_not_on_the_writing(write):
    first = load_recipe(write(VALID)).recipe
    rewritten = changed("adapter:\n  method: lora\n  rank: 8\n", "adapter: {rank: 0x8, method: 'lora'}\n")
    assert recipe_hash(load_recipe(write("# a comment\n" + rewritten)).recipe) == recipe_hash(first)
    assert recipe_hash(load_recipe(write(VALID), ["train.seed=1"]).recipe) != recipe_hash(first)
    assert len(recipe_hash(first)) == 64


def test_differences_are_listed_by_key_with_both_values(write):
    path = write(VALID)
    a = load_recipe(path).recipe
    b = load_recipe(path, ["adapter=dora", "optimizer=lora_plus", "train.clip=null", "~data.eval"]).recipe
    found = {key: (left, right) for key, left, right in compare(a, b)}
    assert found["adapter.method"] == ("lora", "dora")
    assert found["train.clip"] == (1.0, None)
    assert found["optimizer.ratio"] == (ABSENT, 16.0)
    assert found["data.eval"] == (ABSENT, None)
    assert "adapter.rank" not in found
    assert compare(a, a) == []


def test_origins_stand_as_comments_in_a_text_that_still_loads(write, folder):
    path = write(changed("rank: 8", "rank: 8\n  rank_pattern: {a: 1}\n  targets: [q, v]"))
    loaded = load_recipe(path, ['logging.wandb="two\\nlines # here"', "data.format={method: text}"])
    text = with_origins(loaded)
    assert "  rank: 8  # " + str(folder / "recipe.yaml") + ":5\n" in text
    assert "  seed: 0  # default\n" in text
    assert '  wandb: "two\\nlines # here"  # command line\n' in text
    again = write(text, "again.yaml")
    assert load_recipe(again).recipe == loaded.recipe


def test_the_resolved_text_is_read_the_same_by_a_yaml_1_1_parser(write):
    recipe = load_recipe(write(VALID), ["logging.wandb='on'", "adapter.targets=['1e4', '1_0', 'yes']"]).recipe
    read = yaml.safe_load(resolved(recipe))
    assert read == recipe.model_dump(mode="json")
    assert isinstance(Path(read["data"]["train"]["source"]), Path)


# A run of the first release can be scored, merged and gone on with as long as its recipe has this hash. Do not change
# the value: mark the key that a new version brings as `ADDED`.
FIRST_RELEASE = {
    "model": {"name": "HuggingFaceTB/SmolLM2-135M"},
    "quantization": "nf4",
    "adapter": {"method": "dora", "rank": 8, "dropout": 0.05},
    "optimizer": {"method": "adamw", "lr": 1e-4},
    "data": {"train": "https://example.org/rows.jsonl", "format": "text"},
}
ITS_HASH = "1509db9b13facea16bb9ad1630f75016199b007bff9e0da8605109ceb5199b0c"


def test_a_recipe_has_the_hash_that_it_had_in_the_first_release():
    assert recipe_hash(Recipe.model_validate(FIRST_RELEASE)) == ITS_HASH


@pytest.mark.parametrize("key", ["shard_base", "deterministic", "tf32"])
def test_a_younger_key_counts_once_it_is_set(key):
    one = recipe_hash(Recipe.model_validate({**FIRST_RELEASE, "train": {key: False}}))
    other = recipe_hash(Recipe.model_validate({**FIRST_RELEASE, "train": {key: True}}))
    assert one == ITS_HASH != other


def test_where_numbers_lie_counts_in_the_hash_and_decides_no_weight():
    one, other = (
        Recipe.model_validate({**FIRST_RELEASE, "offload": {"weights": w}}) for w in ("none", "disk")
    )
    assert recipe_hash(one) == ITS_HASH != recipe_hash(other)
    assert decisive_hash(one) == decisive_hash(other)


WITH_SOURCES = {
    "model": {"name": "HuggingFaceTB/SmolLM2-135M"},
    "init": {"method": "corda", "data": {"source": "https://example.org/rows.jsonl", "limit": 9}},
    "data": {"train": "https://example.org/rows.jsonl", "format": "text"},
    "eval": {"tasks": [{"method": "loss", "data": "https://example.org/rows.jsonl"}]},
}
ITS_OLD_HASH = "831d0059f5a5eb950d7ed7ce3a4a7f7d056153d8626af10e79e966d651793fb7"


def test_sources_of_methods_and_tasks_have_the_hash_from_before_their_younger_keys():
    assert recipe_hash(Recipe.model_validate(WITH_SOURCES)) == ITS_OLD_HASH
    source = {"source": "https://example.org/rows.jsonl", "take": 5}
    taken = {**WITH_SOURCES, "eval": {"tasks": [{"method": "loss", "data": source}]}}
    assert recipe_hash(Recipe.model_validate(taken)) != ITS_OLD_HASH


@pytest.mark.parametrize(
    "key",
    [{"split": 0.1}, {"seed": 1}, {"stride": 9}, {"mix": {"temperature": 2.0}}],
    ids=lambda key: next(iter(key)),
)
def test_a_younger_key_of_the_data_counts_once_it_is_set(key):
    data = {**FIRST_RELEASE["data"], **key}
    assert recipe_hash(Recipe.model_validate({**FIRST_RELEASE, "data": data})) != ITS_HASH


def test_a_list_of_sources_is_resolved_and_loads_back(write):
    mixed = "train: [rows.jsonl, {source: rows.jsonl, repeat: 2}]"
    loaded = load_recipe(write(changed("train: rows.jsonl", mixed)))
    again = write(resolved(loaded.recipe))
    assert load_recipe(again).recipe == loaded.recipe
    assert "repeat: 2" in with_origins(loaded)
