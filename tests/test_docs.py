"""What is written about the methods and recipes is there, and is true of the code."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

import make_quickstart_data
import methods_table
from lrft.recipe.load import load_recipe
from lrft.registry import axes
from lrft.registry.axes import AXES
from lrft.registry.registry import Declaration, Registry

ROOT = Path(__file__).parents[1]
METHODS = [(axis, name) for axis, registry in AXES.items() for name in registry.names()]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "tables" not in path.parts)

# What a reader must be able to find in a method's docstring, by section of the recipe.
EQUATION_OR_SHAPES = r"=|~|<-|\(\w+(, \w+)+\)"
BORROWED = r"[Tt]he equations (?:[\w ]+ )?of `(\w+)`"
NUMBERS = {
    "quantization": r"\b[Bb](its?|ytes?)\b",
    "optimizer": r"\b[Ss]tate\b.*",
    "adapter": r"[Tt]rains .+ numbers",
    "init": r"[Tt]rains ",
    "allocate": r"[Tt]rains ",
    "restart": r"[Tt]rains |[Ff]old|[Mm]erge",
    "select": r"[Tt]rain|[Ss]tate",
    "objective": r"[Tt]rains ",
}


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def declared(axis: str, name: str) -> Declaration:
    return AXES[axis].declared(name)


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_a_method_states_its_equation_or_shapes(axis, name):
    borrowed = re.search(BORROWED, declared(axis, name).doc)
    stated = declared(axis, borrowed[1] if borrowed else name).doc
    assert re.search(EQUATION_OR_SHAPES, stated)


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_a_method_states_what_it_trains_or_stores(axis, name):
    assert re.search(NUMBERS[axis], declared(axis, name).doc)


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_a_method_states_its_source_and_departures(axis, name):
    declaration = declared(axis, name)
    assert methods_table.source(declaration)
    assert "Departures" in declaration.doc


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_a_method_has_a_one_line_summary(axis, name):
    assert 0 < len(declared(axis, name).summary) <= 110


def test_the_table_of_methods_in_the_readme_is_current():
    assert methods_table.updated(text("README.md")) == text("README.md"), "run scripts/methods_table.py"


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_the_changelog_names_every_method(axis, name):
    released = re.split(r"^## \[", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert any(f"`{name}`" in section for section in released[1:])


def test_the_changelog_has_the_current_version_or_unreleased_changes():
    import lrft

    assert f"## [{lrft.__version__}]" in text("CHANGELOG.md") or "## [Unreleased]" in text("CHANGELOG.md")


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_every_method_has_a_smoke_recipe_that_selects_it(axis, name):
    loaded = load_recipe(ROOT / "recipes" / "smoke" / f"{name}.yaml")
    assert loaded.recipe.parts()[axis].method == name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_packaged_recipe_validates(path):
    load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_packaged_recipe_says_what_it_is_for_and_stays_short(path):
    lines = text(str(path)).splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 60


def test_the_recipe_in_the_readme_is_the_quickstart():
    shown = re.search(r"```yaml\n(.*?)```", text("README.md"), re.DOTALL)
    assert shown and yaml.safe_load(shown[1]) == yaml.safe_load(text("recipes/quickstart.yaml"))


def test_the_quickstart_data_are_what_their_script_makes(tmp_path):
    make_quickstart_data.write(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (make_quickstart_data.FOLDER / name).read_bytes()


def test_the_quickstart_test_asks_for_combinations_that_training_has_not():
    train, test = make_quickstart_data.make()
    assert (len(train), len(test)) == (600, 100)
    for column in ("prompt", "completion"):
        values = [row[column] for row in train + test]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/api.md", "docs/log.md"]
)
def test_links_between_documents_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(name)):
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


def test_the_pieces_of_the_api_page_run_as_they_are_written():
    page = text("docs/api.md").partition("## The pieces, without a recipe")[2].partition("## Inside")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    names: dict = {}
    exec("\n".join(blocks), names)
    assert sum(names["ranks"].values()) == 6
    held = {name: registry for name, registry in vars(axes).items() if isinstance(registry, Registry)}
    methods = {name for name, registry in held.items() if registry.package.startswith("lrft.methods")}
    assert len(methods) >= 9 and all(f"{name}.get(" in page for name in methods)
