"""`data.template` and `tools` in a recipe: a name, or a file whose text the recipe keeps."""

from __future__ import annotations

import json

import pytest

from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash, resolved
from lrft.registry.errors import RecipeError
from lrft.registry.templates import named_template, template_names

RECIPE = "model: {{name: some/model}}\ndata: {{train: some/rows, format: chat, template: {template}}}\n"
JINJA = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def write(tmp_path):
    def write(template, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(RECIPE.format(template=template))
        return path

    return write


def test_a_name_stays_a_name(write):
    for name in template_names():
        assert load_recipe(write(name)).recipe.data.template == name


def test_every_named_template_says_in_its_first_line_what_ends_an_answer():
    assert template_names() == ["chatml", "gemma", "llama3", "mistral", "plain", "zephyr"]
    for name in template_names():
        first = named_template(name).splitlines()[0]
        assert first.startswith("{#- ") and " stop: " in first and first.endswith(" -#}"), name


def test_a_file_beside_the_recipe_is_kept_as_its_text(write, tmp_path):
    (tmp_path / "mine.jinja").write_text(JINJA)
    recipe = load_recipe(write("mine.jinja")).recipe
    assert recipe.data.template == JINJA
    (tmp_path / "mine.jinja").write_text("changed")
    again = tmp_path / "run.yaml"
    again.write_text(resolved(recipe))
    kept = load_recipe(again).recipe
    assert kept == recipe and recipe_hash(kept) == recipe_hash(recipe)
    assert str(tmp_path) not in resolved(recipe).partition("template:")[2].partition("\n")[0]


def test_another_text_of_the_file_is_another_recipe(write, tmp_path):
    (tmp_path / "mine.jinja").write_text(JINJA)
    before = recipe_hash(load_recipe(write("mine.jinja")).recipe)
    (tmp_path / "mine.jinja").write_text(JINJA + "\n")
    assert recipe_hash(load_recipe(write("mine.jinja")).recipe) != before


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("chatlm", "did you mean chatml?"),
        ("alpaca", "write data.format: instruction"),
        ("none.jinja", "is neither a template nor a file"),
        ("words.txt", "is no Jinja: it has neither {{ nor {%"),
        ("bytes.jinja", "cannot be read"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(write, tmp_path, template, said):
    (tmp_path / "words.txt").write_text("User and Assistant")
    (tmp_path / "bytes.jinja").write_bytes(b"{{\xff}}")
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(template))
    assert said in str(raised.value) and "recipe.yaml:2" in str(raised.value)


TOOLED = "model: {{name: some/model}}\ndata: {{train: some/rows, format: {{method: chat, tools: {tools}}}}}\n"
TOOLS = [{"name": "weather", "description": "of a city, größer"}]


def test_tools_are_kept_as_the_text_of_their_file(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS, indent=2))
    path = tmp_path / "recipe.yaml"
    path.write_text(TOOLED.format(tools="tools.json"))
    recipe = load_recipe(path).recipe
    assert json.loads(recipe.data.format.tools) == TOOLS and "größer" in resolved(recipe)
    (tmp_path / "tools.json").unlink()
    again = tmp_path / "run.yaml"
    again.write_text(resolved(recipe))
    assert load_recipe(again).recipe == recipe


def test_without_tools_a_recipe_has_the_hash_that_it_had_before_there_were_any(write):
    from lrft.recipe.resolved import _without_added

    recipe = load_recipe(write("null")).recipe
    kept = _without_added(recipe)["data"]
    assert "template" not in kept and "tools" not in kept["format"]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "there is no file"),
        ("{", "is not valid JSON"),
        ("{}", "must be a JSON list of tools"),
        ("[]", "must be a"),
    ],
)
def test_what_holds_no_tools_is_refused_with_its_line(tmp_path, held, said):
    if held is not None:
        (tmp_path / "tools.json").write_text(held)
    path = tmp_path / "recipe.yaml"
    path.write_text(TOOLED.format(tools="tools.json"))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert said in str(raised.value) and "recipe.yaml:2" in str(raised.value)
