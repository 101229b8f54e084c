"""Layers of a recipe: parents, short forms, overrides."""

from __future__ import annotations

import pytest

from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import compare
from tests.recipe.valid_recipe import VALID, changed, problems_of


def test_a_child_wins_key_by_key_over_its_parents(write):
    write(VALID, "base.yaml")
    write("extends: base.yaml\ntrain: {batch_size: 4}\noptimizer: {lr: 1e-3}\n", "middle.yaml")
    recipe = load_recipe(write("extends: middle\ntrain: {max_steps: 5}\n", "child.yaml")).recipe
    assert (recipe.train.max_steps, recipe.train.batch_size) == (5, 4)
    assert (recipe.optimizer.method, recipe.optimizer.lr) == ("adamw", 1e-3)
    assert recipe.adapter.rank == 8


def test_a_method_written_as_a_string_keeps_the_other_keys_of_its_section(write):
    write(changed("schedule: cosine", "schedule: {method: cosine, warmup_ratio: 0.1}"), "base.yaml")
    loaded = load_recipe(write("extends: base.yaml\nadapter: dora\nschedule: linear\n"))
    assert (loaded.recipe.adapter.method, loaded.recipe.adapter.rank) == ("dora", 8)
    assert (loaded.recipe.schedule.method, loaded.recipe.schedule.warmup_ratio) == ("linear", 0.1)


def test_a_source_written_as_a_string_replaces_the_whole_older_source(write):
    write(changed("  train: rows.jsonl", "  train: {source: o/n, name: main, limit: 3}"), "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ndata: {train: rows.jsonl}\n")).recipe
    assert recipe.data.train.limit is None and recipe.data.train.name is None


def test_a_source_written_as_a_section_is_merged(write):
    write(VALID, "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ndata: {train: {limit: 3}}\n")).recipe
    assert recipe.data.train.limit == 3 and recipe.data.train.source.endswith("rows.jsonl")


def test_data_written_as_a_string_is_the_source_of_both_splits_and_keeps_the_format(write, folder):
    write(VALID, "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ndata: owner/rows\n")).recipe
    assert recipe.data.train.source == recipe.data.eval.source == "owner/rows"
    assert recipe.data.format.method == "chat"


def test_another_format_does_not_inherit_the_settings_of_the_older_one(write):
    columns = "format: {method: columns, prompt: '{q}', completion: '{a}'}"
    write(changed("format: chat", columns), "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ndata: {format: {method: chat}}\n")).recipe
    assert recipe.data.format.method == "chat"
    changed_prompt = write("extends: base.yaml\ndata: {format: {prompt: 'Q {q}'}}\n", "other.yaml")
    assert load_recipe(changed_prompt).recipe.data.format.completion == "{a}"


def test_null_in_a_child_unsets_an_optional_value(write):
    write(VALID, "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ntrain: {max_steps: null, clip: null}\n")).recipe
    assert recipe.train.max_steps is None and recipe.train.clip is None


def test_a_list_in_a_child_replaces_the_older_list(write):
    write(VALID, "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\neval: {tasks: [gsm8k]}\n")).recipe
    assert [task.method for task in recipe.eval.tasks] == ["gsm8k"]


def test_a_packaged_recipe_can_be_extended_by_name(write):
    child = write("extends: quickstart\ntrain: {seed: 7}\n")
    differences = compare(load_recipe("quickstart").recipe, load_recipe(child).recipe)
    assert differences == [("train.seed", 0, 7)]


def test_a_circle_of_parents_is_named_in_full(write):
    write("extends: b.yaml\n", "a.yaml")
    write("extends: c\n", "b.yaml")
    path = write("extends: a.yaml\n", "c.yaml")
    (problem,) = problems_of(path)
    assert problem.key == "extends"
    assert "c.yaml extends a.yaml extends b.yaml extends c.yaml" in problem.message


def test_an_endless_chain_of_parents_is_refused(write):
    for number in range(40):
        write(f"extends: r{number + 1}\n", f"r{number}.yaml")
    write(VALID, "r40.yaml")
    (problem,) = problems_of(write("extends: r0\n"))
    assert "chain" in problem.message


def test_a_problem_in_a_parent_names_the_parent(write, folder):
    write(changed("rank: 8", "rank: x"), "base.yaml")
    problems = problems_of(write("extends: base.yaml\ntrain: {seed: y}\n"))
    assert [(p.file, p.line, p.key) for p in problems] == [
        (str(folder / "recipe.yaml"), 2, "train.seed"),
        (str(folder / "base.yaml"), 5, "adapter.rank"),
    ]


def test_a_broken_parent_is_reported_by_its_own_file(write, folder):
    write("model: [", "base.yaml")
    (problem,) = problems_of(write("extends: base.yaml\n"))
    assert problem.file == str(folder / "base.yaml") and problem.line == 1


def test_a_section_without_a_method_means_the_default_method(write):
    text = changed("optimizer:\n  method: adamw\n  lr: 2e-4\n", "optimizer: {lr: 1e-3}\n")
    loaded = load_recipe(write(text))
    assert (loaded.recipe.optimizer.method, loaded.recipe.optimizer.lr) == ("adamw", 1e-3)
    assert loaded.origins["optimizer.method"] == "default"


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.max_steps=5", "train.max_steps", 5),
        ("optimizer.lr=3e-5", "optimizer.lr", 3e-5),
        ("train.clip=null", "train.clip", None),
        ("train.clip=", "train.clip", None),
        ("logging.wandb=a=b", "logging.wandb", "a=b"),
        ("adapter=dora", "adapter.method", "dora"),
        ("adapter=dora", "adapter.rank", 8),
        ("schedule=constant", "schedule.method", "constant"),
        ("adapter={rank: 4}", "adapter.rank", 4),
        ("adapter.rank_pattern={q_proj: 2}", "adapter.rank_pattern", {"q_proj": 2}),
        ("adapter.targets=[q_proj, v_proj]", "adapter.targets", ["q_proj", "v_proj"]),
        ("data=owner/rows", "data.eval.source", "owner/rows"),
        ("data.train=owner/rows", "data.train.source", "owner/rows"),
        ("data.train.limit=2", "data.train.limit", 2),
        ("data.format=text", "data.format.method", "text"),
        ("train.packing=false", "train.packing", False),
        ("~train.max_steps", "train.max_steps", None),
        ("~schedule", "schedule.method", "linear"),
        ("~adapter.rank", "adapter.rank", 16),
        ("~data.eval", "data.eval", None),
    ],
)
def test_an_override_sets_or_deletes_one_key(write, override, key, expected):
    found = load_recipe(write(VALID), [override]).recipe
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected


def test_overrides_apply_in_order(write):
    loaded = load_recipe(write(VALID), ["train.seed=1", "~train.seed", "train.seed=3", "train.seed=4"])
    assert loaded.recipe.train.seed == 4


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("adapter.rnak=4", "adapter.rnak", "did you mean rank?"),
        ("adapter.rank=x", "adapter.rank", "an integer greater than 0 and at most 65536, not 'x'"),
        ("adapter=dorra", "adapter.method", "did you mean dora or dvora?"),
        ("trian.seed=1", "trian", "did you mean train?"),
        ("train.seed.deep=1", "train.seed", "not a section"),
        ("train={seed: 1, seed: 2}", "train.seed", "is written twice; keep one of them"),
        ("train.seed=[", "train.seed", "not valid YAML"),
        ("train.seed=@x", "train.seed", "not valid YAML"),
        ("train.seed=!!python/name:os.system x", "train.seed", "is not allowed"),
        ("train", "", "is not an override; write key.sub=value"),
        ("=5", "", "has no usable key"),
        ("a..b=5", "", "has no usable key"),
        (" =5", "", "has no usable key"),
        ("~", "", "has no usable key"),
        ("a." * 30 + "b=1", "", "has no usable key"),
        ("~train.sed", "train.sed", "nothing to delete"),
        ("~tarin.seed", "tarin.seed", "did you mean train?"),
        ("~model.name", "model.name", "is required"),
        ("eval.tasks.0.limit=5", "eval.tasks.0.limit", "write eval.tasks=[...]"),
        ("extends=quickstart", "extends", "is read from files only"),
        ("data.train=lost.jsonl", "data.train.source", "no file or folder 'lost.jsonl'"),
        ("optimizer.trust_remote_code=true", "optimizer.trust_remote_code", "--trust-remote-code"),
    ],
)
def test_a_wrong_override_is_one_problem_of_the_command_line(write, override, key, words):
    (problem,) = problems_of(write(VALID), override)
    assert problem.key == key
    assert str(problem).startswith("command line: ") or override == "~model.name"
    assert words in problem.message


def test_an_override_that_clashes_with_the_file_is_reported_at_the_override(write):
    (problem,) = problems_of(write(VALID), "schedule.warmup_steps=500")
    assert str(problem).startswith("command line: schedule.warmup_steps: ")


def test_every_value_knows_its_origin(write, folder):
    write(VALID, "base.yaml")
    origins = load_recipe(write("extends: base.yaml\n\nadapter: dora\n"), ["train.seed=3"]).origins
    assert origins["adapter.method"] == f"{folder / 'recipe.yaml'}:3"
    assert origins["adapter.rank"] == f"{folder / 'base.yaml'}:5"
    assert origins["train.seed"] == "command line"
    assert origins["train.keep_last"] == "default"
    assert origins["data.train.source"] == f"{folder / 'base.yaml'}:11"


def test_a_newer_layer_that_holds_rows_out_replaces_how_the_older_one_does(write):
    split = load_recipe(write(VALID), ["data.split=0.1"]).recipe.data
    assert split.split == 0.1 and split.eval is None
    over = write("extends: recipe.yaml\ndata: {split: 5}\n", "over.yaml")
    assert load_recipe(over).recipe.data.eval is None
    back = load_recipe(over, ["data.eval=owner/rows"]).recipe.data
    assert back.split is None and back.eval.source == "owner/rows"
    (problem,) = problems_of(write(VALID), "data.eval=owner/rows", "data.split=5")
    assert problem.key == "data.split"
