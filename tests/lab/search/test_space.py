"""Space files: what their forms mean, and that whatever no arm can have is refused with its file, line and key."""

from __future__ import annotations

import re

import pytest

from lrft.core.search import Gene
from lrft.lab.search.arms import Arms
from lrft.lab.search.space import read_space
from lrft.registry.errors import RecipeError


@pytest.fixture
def space(tmp_path):
    def read(text):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return read_space(path)

    return read


@pytest.fixture
def arms(recipe, space):
    """`arms(text, *overrides)` -> the arms of a LoRA recipe of rank 4, in the space that the text is."""
    return lambda text, *overrides: Arms(str(recipe("a")), overrides, space(text), "eval_loss")


def test_every_form_becomes_genes_and_sections_come_before_their_settings(space):
    read = space(
        "adapter.rank: [2, 4, 8]\n"
        "adapter: {choice: [lora, {method: dora, dropout: 0.1}]}\n"
        "optimizer.lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "adapter.alpha: {low: 2, high: 32}\n"
        "adapter.layers: {subset: [0, 1]}\n"
        "schedule: [cosine, linear]\n"
        "train.clip: [1.0, 0.5]\n"
    )
    assert read.genes == (
        Gene("adapter", 2),
        Gene("schedule", 2),
        Gene("adapter.rank", 3, ordered=True),
        Gene("optimizer.lr", 0, True, 1e-4, 1e-2, log=True),
        Gene("adapter.alpha", 0, True, 2, 32, whole=True),
        Gene("adapter.layers[0]", 2),
        Gene("adapter.layers[1]", 2),
        Gene("train.clip", 2),  # in no order, so neighbours are not alike
    )
    assert read.values((1, 0, 2, 0.003, 7, 0, 1, 0)) == {
        "adapter": {"method": "dora", "dropout": 0.1},
        "schedule": "cosine",
        "adapter.rank": 8,
        "optimizer.lr": 0.003,
        "adapter.alpha": 7,
        "adapter.layers": [1],
        "train.clip": 1.0,
    }


WRONG = [
    ("", ":1: holds null; a space is a mapping"),
    ("- adapter.rank\n", ":1: holds ['adapter.rank']; a space is a mapping"),
    ("adapter.rank: 4\n", ":1: adapter.rank: 4 is one value; write a list, {low: 1e-4"),
    ("\nadapter.rank: [4]\n", ":2: adapter.rank: needs two values or more"),
    ("adapter.rank: [4, 8, 4]\n", ":1: adapter.rank: has 4 twice"),
    ("a: [1, 2]\na: [1, 2]\n", ":2: a: is written twice (first on line 1)"),
    ("adapter: {rank: [2, 4]}\n", ":1: adapter: rank is no form of a space"),
    ("optimizer.lr: {low: 1, hihg: 2}\n", ":1: optimizer.lr: hihg is no form of a space; did you mean high?"),
    ("optimizer.lr: {low: 1}\n", ":1: optimizer.lr.high: must be a number, not null"),
    ("optimizer.lr: {low: x, high: 2}\n", ":1: optimizer.lr.low: must be a number, not 'x'"),
    ("optimizer.lr: {low: 2, high: 1}\n", ":1: optimizer.lr.high: must be more than low, which is 2"),
    ("optimizer.lr: {low: 0, high: 1, log: true}\n", ":1: optimizer.lr.low: must be above 0"),
    ("optimizer.lr: {low: 1, high: 2, log: 3}\n", ":1: optimizer.lr.log: must be true or false, not 3"),
    ("adapter: {choice: lora}\n", ":1: adapter.choice: must be a list, not 'lora'"),
    ("data.eval: [a, b]\n", ":1: data.eval: decides what is scored"),
    ("model.name: [a, b]\n", ":1: model.name: decides what is scored"),
    ("eval.limit: [1, 2]\n", ":1: eval.limit: decides what is scored"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_no_space_is_refused_where_it_stands(space, tmp_path, text, said):
    with pytest.raises(RecipeError, match=re.escape(f"{tmp_path / 'space.yaml'}{said}")):
        space(text)


def test_every_problem_of_a_file_is_told_at_once(space):
    with pytest.raises(RecipeError) as told:
        space("adapter.rank: 4\noptimizer.lr: {low: 2, high: 1}\n")
    assert [problem.line for problem in told.value.problems] == [1, 2]


def test_values_that_no_recipe_takes_are_refused_at_their_keys(arms):
    with pytest.raises(RecipeError) as told:
        arms(
            "adapter.rnak: [2, 4]\nadapter.rank: [2, -4]\nadapter: [lora, lroa]\noptimizer.lr: {low: -1.0, high: 1.0}\n"
        ).check()
    found = {problem.key: (problem.line, problem.message) for problem in told.value.problems}
    assert found["adapter.rnak"] == (1, "2: unknown key of lora; did you mean rank?")
    assert found["adapter.rank"][0] == 2 and found["adapter.rank"][1].startswith(
        "-4: must be an integer greater than 0"
    )
    assert found["adapter"][0] == 3 and found["adapter"][1].startswith("'lroa': unknown adapter 'lroa'")
    assert found["optimizer.lr"][1].startswith("-1.0: must be a number greater than 0")


def test_a_setting_that_another_choice_of_the_space_has_is_none_of_the_others(arms):
    """ia3 has no rank: the key is left out, and arms that would be the same recipe are one."""
    made = arms("adapter: [lora, ia3]\nadapter.rank: [2, 4]\n")
    made.check()
    assert made.arm((0, 1)).label == "adapter=lora,rank=4" and made.arm((0, 1)).recipe.adapter.rank == 4
    assert made.arm((1, 1)).label == "adapter=ia3" and made.values((1, 1)) == {"adapter": "ia3"}
    assert made.possible((1, 0)) and made.possible((1, 1))
    made.take((1, 0))
    assert made.possible((1, 0)) and not made.possible((1, 1))


def test_a_value_is_fine_that_goes_with_some_of_the_others(arms):
    """pissa starts factors, which the recipe's ia3 does not have and another arm does."""
    made = arms("adapter: [lora, ia3]\ninit: [default, pissa]\n", "adapter=ia3")
    made.check()
    assert made.possible((0, 1)) and not made.possible((1, 1))
    assert "init" in made.refused[(1, 1)]


def test_what_the_model_cannot_have_is_found_before_it_trains(arms):
    made = arms("adapter.layers: {subset: [0, 1]}\n")
    made.check()
    assert not made.possible((0, 0)) and made.possible((0, 1)) and made.possible((1, 1))
    assert 2 * made.cost(made.arm((0, 1)))["trainable"] == made.cost(made.arm((1, 1)))["trainable"]
