"""What is written about the methods and recipes is there, and is true of the code."""

import re
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import get_args

import pytest
import yaml

import choosing_page
import data_page
import generated
import make_quickstart_data
import methods_pages
import performance_page
import recipe_page
import reliability_page
from lrft.recipe.load import load_recipe
from lrft.registry import axes
from lrft.registry.axes import (
    AGGREGATORS,
    ANALYSES,
    AXES,
    COMBINATIONS,
    DATA_SELECTIONS,
    FORMATS,
    GENERATORS,
    REWARDS,
    SEARCHES,
    SIGNALS,
    TASKS,
    TRANSFER_ESTIMATES,
)
from lrft.registry.registry import Declaration, Registry
from tests.each import each

ROOT = Path(__file__).parents[1]
METHODS = [(axis, name) for axis, registry in AXES.items() for name in registry.names()]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "tables" not in path.parts)

# The paragraphs of a docstring, in order; in brackets those that are there only where there is something to say.
METHOD = "Shapes Trains [State] Source Departures [Advice]"
PARAGRAPHS = {
    **dict.fromkeys(AXES, METHOD),
    "quantization": "Shapes Bits Source Departures [Advice]",
    "optimizer": "Shapes State Source Departures [Advice]",
    "schedule": "Shapes State Source Departures [Advice]",
    "signal": "Shapes Keeps Source Departures",
    "search": "Space State Source Departures [Advice]",
    "combine": "Shapes Takes Source Departures [Advice]",
    "data_selection": "Needs Score Source Departures [Advice]",
    "transfer": "Needs Score Source Departures [Advice]",
    "generate": METHOD,
    "analysis": "Shapes Found Source [Departures] [Advice]",
    "format": "Columns Text Learnt",
    "task": "Prompt Score Source",
    "aggregator": "Shapes Bytes State Source Departures [Advice]",
    "reward": "Score Source [Departures]",
}
LABEL = r"^([A-Z][a-z]+): "
EQUATION = r"^ {4}\S.*(=|~|<-|:)"
BORROWED = r"[Tt]he equations (?:[\w ]+ )?of `(\w+)`"
NUMBERS = {
    "adapter": r"(numbers|r\^2|rank)",
    "optimizer": r"\b(number|bytes)",
    "quantization": r"\d|dtype",
    "init": r"[Tt]he base (gives up|stores|keeps)",
}
REGISTRIES = {
    **AXES,
    "signal": SIGNALS,
    "analysis": ANALYSES,
    "format": FORMATS,
    "task": TASKS,
    "reward": REWARDS,
    "search": SEARCHES,
    "aggregator": AGGREGATORS,
    "combine": COMBINATIONS,
    "data_selection": DATA_SELECTIONS,
    "transfer": TRANSFER_ESTIMATES,
    "generate": GENERATORS,
}
DOCUMENTED = [(axis, name) for axis, registry in REGISTRIES.items() for name in registry.names()]


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def declared(axis: str, name: str) -> Declaration:
    return REGISTRIES[axis].declared(name)


def paragraphs(doc: str) -> dict[str, str]:
    """Label -> text, in the order of the docstring; what stands before the first label is under ""."""
    parts = re.split(LABEL, cleandoc(doc).partition("\nArgs:\n")[0], flags=re.MULTILINE)
    assert len(parts[1::2]) == len(set(parts[1::2])), "a label stands twice"
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def settings(axis: str, name: str) -> dict[str, bool]:
    """Setting -> whether its field describes it."""
    fields = declared(axis, name).config.model_fields
    return {key: bool(field.description) for key, field in fields.items() if key != "method"}


@each(("axis", "name"), DOCUMENTED)
def test_a_docstring_has_the_paragraphs_of_its_axis_in_order(axis, name):
    pattern = "".join(
        f"({part[1:-1]} )?" if part.startswith("[") else f"{part} " for part in PARAGRAPHS[axis].split()
    )
    found = [label for label in paragraphs(declared(axis, name).doc) if label]
    assert re.fullmatch(pattern, "".join(f"{label} " for label in found)), found


@each(("axis", "name"), DOCUMENTED)
def test_a_docstring_has_its_equations_as_a_block_or_those_of_another_method(axis, name):
    head = paragraphs(declared(axis, name).doc)[""]
    if not re.search(EQUATION, head, re.MULTILINE):
        borrowed = re.search(BORROWED, head)
        assert borrowed and borrowed[1] in REGISTRIES[axis].names() and borrowed[1] != name


@each(("axis", "name"), DOCUMENTED)
def test_every_setting_is_explained_on_the_page_or_in_its_field(axis, name):
    doc = declared(axis, name).doc
    for other in re.findall(r"(?:settings of|as in) `(\w+)`", doc):
        doc += declared(axis, other).doc if other in REGISTRIES[axis].names() else ""
    said = set(re.findall(r"`(\w+)(?::[^`]*)?`", doc))
    missing = [key for key, described in settings(axis, name).items() if not described and key not in said]
    assert not missing


@each(("axis", "name"), DOCUMENTED)
def test_values_of_settings_are_written_as_recipes_take_them(axis, name):
    """`scale: weightS` on a page means that `weightS` is among the values of the setting `scale`."""
    for key, values in literals(axis, name).items():
        for value in re.findall(rf"(?<![\w.])`{key}: (\w+)`", declared(axis, name).doc):
            assert value in map(str, values), f"{key}: {value}"
        undescribed = not settings(axis, name)[key] and all(isinstance(value, str) for value in values)
        for value in values if undescribed else ():
            assert re.search(rf"\b{re.escape(str(value))}\b", declared(axis, name).doc), f"{key}: {value}"


def literals(axis: str, name: str) -> dict[str, list[object]]:
    """Setting -> its values, of every setting that is a choice."""
    found = {}
    for key, field in declared(axis, name).config.model_fields.items():
        options = [get_args(part) for part in (field.annotation, *get_args(field.annotation))]
        values = next((o for o in options if o and all(isinstance(v, str | int) for v in o)), None)
        if values:
            found[key] = list(values)
    return found


@each(("axis", "name"), METHODS)
def test_a_method_states_what_it_trains_or_stores(axis, name):
    label = {"quantization": "Bits", "optimizer": "State", "schedule": "State"}.get(axis, "Trains")
    stated = " ".join(paragraphs(declared(axis, name).doc)[label].split())
    assert stated and re.search(NUMBERS.get(axis, r"\w"), stated)


@each(("axis", "name"), METHODS)
def test_an_adapter_an_init_and_an_objective_say_what_holds_at_step_0(axis, name):
    if axis in ("adapter", "init", "objective"):
        assert "step 0" in paragraphs(declared(axis, name).doc)["Shapes"]


@each(("axis", "name"), METHODS)
def test_a_method_states_its_source_and_departures(axis, name):
    declaration = declared(axis, name)
    source = " ".join(paragraphs(declaration.doc)["Source"].split())
    assert methods_pages.source(declaration) == source.rstrip(".;")
    assert paragraphs(declaration.doc)["Departures"].strip()


@each(("axis", "name"), DOCUMENTED)
def test_a_docstring_has_a_one_line_summary_and_no_filler(axis, name):
    declaration = declared(axis, name)
    summary, _, rest = declaration.doc.strip().partition("\n")
    assert len(summary) <= 110 and summary.endswith(".") and rest.startswith("\n")
    assert "nothing of its own" not in " ".join(declaration.doc.lower().split())


@pytest.mark.parametrize(
    "script",
    [methods_pages, recipe_page, data_page, choosing_page, performance_page, reliability_page],
    ids=lambda s: s.__name__,
)
def test_what_a_script_writes_is_current(script):
    owned = [methods_pages.FOLDER] if script is methods_pages else []
    stale = generated.out_of_date(script.fresh(), owned)
    assert not stale, f"run scripts/{script.__name__}.py"


def test_the_readme_is_short_enough_to_be_read_and_long_enough_to_decide():
    assert 10_000 <= len(text("README.md").encode()) <= 12_000


def test_a_docstring_in_the_layout_becomes_equations_and_named_paragraphs():
    doc = """Moves *every* row.

        W' = W + s B A,  s < 1
        y  = x W'^T

    with s = `alpha` / r and A_ij as in LoRA.

    Shapes: A (r, in).
    Trains: r (in + out) numbers
    per site.
    Source: Somebody, "A title: with a colon", 2024.
    Departures: none.
    """
    assert methods_pages.docstring(doc) == "\n\n".join(
        (
            "Moves \\*every\\* row.",
            "```text\nW' = W + s B A,  s < 1\ny  = x W'^T\n```",
            "with s = `alpha` / r and A\\_ij as in LoRA.",
            "**Shapes:** A (r, in).",
            "**Trains:** r (in + out) numbers per site.",
            '**Source:** Somebody, "A title: with a colon", 2024.',
            "**Departures:** none.",
        )
    )


def test_every_key_of_a_recipe_is_on_the_reference_with_what_it_does():
    rows = re.findall(r"^\| `(\w+\.[\w.]+)` \|.*\| (.*) \|$", text("docs/recipe-reference.md"), re.MULTILINE)
    assert len(rows) > 40
    assert [key for key, what in rows if not what] == []


def test_the_own_data_page_shows_every_format_with_five_rows_and_what_is_learnt():
    page = text("docs/own-data.md")
    for name in axes.FORMATS.names():
        block = page.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
        assert len(re.findall(rf"^docs/rows/{name}\.\w+:\d+: ", block, re.MULTILINE)) == data_page.COUNT
        assert block.count("⟦") >= data_page.COUNT and block.count("⟦") == block.count("⟧")


def test_every_measured_block_ends_where_it_begins():
    pages = [text("README.md"), *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    opened = [name for page in pages for name in re.findall(r"<!-- measured:(\w+) -->", page)]
    closed = [name for page in pages for name in re.findall(r"<!-- /measured:(\w+) -->", page)]
    assert sorted(opened) == sorted(closed) and len(set(opened)) == len(opened) >= 5


@each(("axis", "name"), METHODS)
def test_the_changelog_names_every_method(axis, name):
    released = re.split(r"^## \[", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert any(f"`{name}`" in section for section in released[1:])


def test_the_changelog_has_released_the_current_version_below_what_is_not_released():
    import lrft

    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text("CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert lrft.__version__ in [version for version, day in heads if day]
    assert f"version: {lrft.__version__}\n" in text("CITATION.cff")


def test_a_change_is_one_line_of_the_changelog():
    body = text("CHANGELOG.md").partition("## [Unreleased]")[2].partition("\n[Unreleased]:")[0]
    lines = [
        line for line in body.splitlines()[1:] if line and not line.startswith(("#", "The first release."))
    ]
    assert lines and all(line.startswith("- ") and len(line) <= 160 for line in lines)


@each(("axis", "name"), METHODS)
def test_every_method_has_a_smoke_recipe_that_selects_it(axis, name):
    loaded = load_recipe(ROOT / "recipes" / "smoke" / f"{name}.yaml")
    assert loaded.recipe.parts()[axis].method == name


@each("path", RECIPES)
def test_every_packaged_recipe_validates(path):
    load_recipe(path)


@each("path", RECIPES)
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


DOCUMENTS = [path.name for path in sorted(ROOT.glob("*.md"))]
DOCUMENTS += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]


@each("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    prose = re.sub(r"^```.*?^```", "", text(name), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


@each("name", DOCUMENTS)
def test_a_table_begins_after_an_empty_line(name):
    """Or the site shows it as text."""
    prose = re.sub(r"^```.*?^```", "", text(name), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^[^|\n].*\n\|.*\|$", prose, re.MULTILINE) == []


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
