"""`lrft recipes`, `lrft methods` and `lrft env`: results on standard output, problems as errors, no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from lrft.commands import methods, recipes
from lrft.commands.env import env_command
from lrft.recipe import library
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, AXES
from lrft.registry.errors import LrftError, RecipeError, UsageError
from tests.recipe.valid_recipe import VALID, changed


def run(app, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, LrftError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ls_lists_the_packaged_recipes_but_not_their_parts():
    listed = run(recipes.app, "ls").splitlines()
    assert {"quickstart", "smollm2-gsm8k-dora", "smoke/lora"} <= set(listed)
    assert not [name for name in listed if "_base" in name]


def test_a_bare_name_finds_a_packaged_recipe_with_or_without_suffix():
    assert library.find("smoke/lora") == library.find("smoke/lora.yaml") == load_recipe("smoke/lora").path
    assert load_recipe("smoke/lora").name == "lora"


def test_a_near_miss_of_a_recipe_name_is_suggested():
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        run(recipes.app, "show", "quikstart")


def test_a_file_in_the_working_directory_wins_over_a_packaged_recipe(write, folder, monkeypatch):
    monkeypatch.chdir(folder)
    write(VALID, "quickstart.yaml")
    assert load_recipe("quickstart.yaml").recipe.model.name == "owner/model"
    assert load_recipe("quickstart").recipe.model.name != "owner/model"
    write(VALID, "mine.yaml")
    assert load_recipe("mine").recipe.model.name == "owner/model"


def test_show_prints_a_recipe_that_loads_back_equal(write):
    text = run(recipes.app, "show", "quickstart", "train.seed=5", "~train.packing")
    assert (
        load_recipe(write(text)).recipe
        == load_recipe("quickstart", ["train.seed=5", "~train.packing"]).recipe
    )


def test_show_says_where_values_come_from_on_request():
    text = run(recipes.app, "show", "quickstart", "train.seed=5", "--origins")
    assert "seed: 5  # command line" in text and "# default" in text and "quickstart.yaml:" in text


@pytest.mark.parametrize("name", library.names())
def test_a_copied_recipe_means_the_same_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(recipes.app, "cp", name, "mine.yaml").strip() == "mine.yaml"
    assert load_recipe("mine.yaml").recipe == load_recipe(name).recipe


def test_cp_into_a_folder_keeps_the_name_and_never_overwrites(tmp_path):
    written = run(recipes.app, "cp", "quickstart", str(tmp_path)).strip()
    assert written == str(tmp_path / "quickstart.yaml")
    with pytest.raises(UsageError, match="exists already"):
        run(recipes.app, "cp", "quickstart", str(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        run(recipes.app, "cp", "quickstart", str(tmp_path / "no" / "x.yaml"))


def test_validate_says_ok_for_each_good_file_and_raises_the_problems_of_the_others(write):
    good, bad = write(VALID, "good.yaml"), write(changed("rank: 8", "rnak: 8"), "bad.yaml")
    assert run(recipes.app, "validate", str(good), "quickstart") == f"{good}: ok\nquickstart: ok\n"
    result = CliRunner().invoke(recipes.app, ["validate", str(bad), str(good)])
    assert result.stdout == f"{good}: ok\n"
    assert isinstance(result.exception, RecipeError) and result.exception.exit_code == 2
    assert str(result.exception) == f"{bad}:5: adapter.rnak: unknown key of lora; did you mean rank?"


def test_validate_applies_overrides_to_every_file(write):
    good = write(VALID)
    with pytest.raises(RecipeError, match=r"command line: train\.seed: "):
        run(recipes.app, "validate", str(good), "train.seed=x")
    with pytest.raises(UsageError, match="give a recipe"):
        run(recipes.app, "validate", "train.seed=1")


def test_diff_prints_the_settings_that_differ(write):
    write(VALID, "a.yaml")
    b = write("extends: a.yaml\nadapter: {rank: 4}\n", "b.yaml")
    assert run(recipes.app, "diff", str(b.with_name("a.yaml")), str(b)) == "adapter.rank: 8 -> 4\n"
    assert run(recipes.app, "diff", "quickstart", "quickstart") == ""


def resolve(schema, node):
    """The definition that a JSON schema node refers to."""
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def test_schema_holds_every_method_with_its_own_settings():
    schema = json.loads(run(recipes.app, "schema"))
    for axis, registry in AXES.items():
        names, *sections = schema["properties"][axis]["anyOf"]
        assert names["enum"] == registry.names()
        assert [section["properties"]["method"]["const"] for section in sections] == registry.names()
        for section, name in zip(sections, registry.names(), strict=True):
            assert set(section["properties"]) == set(registry.declared(name).config.model_fields)
            assert section["additionalProperties"] is False


def test_schema_knows_sections_short_forms_and_extends():
    schema = json.loads(run(recipes.app, "schema"))
    assert schema["properties"]["extends"]["type"] == "string"
    data = resolve(schema, schema["properties"]["data"])
    assert data["anyOf"][0] == {"type": "string"}
    assert "enum" in data["anyOf"][1]["properties"]["format"]["anyOf"][0]
    tasks = resolve(schema, schema["properties"]["eval"])["properties"]["tasks"]
    assert "loss" in tasks["items"]["anyOf"][0]["enum"]
    train = resolve(schema, schema["properties"]["train"])
    assert train["properties"]["batch_size"]["exclusiveMinimum"] == 0


def test_every_reference_of_the_schema_is_defined():
    text = run(recipes.app, "schema")
    schema = json.loads(text)
    references = {part.partition('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert references and references <= set(schema["$defs"])
    assert all(schema["$defs"].values())


def test_methods_ls_shows_every_method_of_every_axis():
    lines = run(methods.app, "ls").splitlines()
    for axis, registry in AXES.items():
        for name in registry.names():
            assert [axis, name] in [line.split()[:2] for line in lines]
    assert [line.split()[1] for line in run(methods.app, "ls", "adapter").splitlines()] == ADAPTERS.names()
    with pytest.raises(UsageError, match="did you mean adapter"):
        run(methods.app, "ls", "adaptor")


def test_methods_show_prints_docstring_settings_and_traits():
    text = run(methods.app, "show", "lora")
    assert "Low-rank adaptation" in text and "Hu et al." in text
    assert "rank: 16  (an integer greater than 0 and at most 65536)" in text
    assert "mergeable: the adapter is a change of the weight" in text
    with pytest.raises(UsageError, match="did you mean lora"):
        run(methods.app, "show", "lorra")


def test_every_method_can_be_shown():
    for line in run(methods.app, "ls").splitlines():
        axis, name = line.split()[:2]
        assert f"{axis}: {name}" in run(methods.app, "show", name)


def test_env_prints_versions_and_hardware_but_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    app = typer.Typer()
    app.command()(env_command)
    facts = json.loads(run(app, "--json"))
    assert {"python", "lrft", "torch", "cores", "memory_gib", "gpus", "cpu_flags"} <= facts.keys()
    plain = run(app)
    assert f"torch: {facts['torch']}" in plain and "hf_verysecret" not in plain


def test_checking_recipes_imports_no_torch_and_reads_the_methods_it_names(write):
    """Not the other two hundred, which the schema and the table alone look at."""
    code = (
        "import sys\n"
        "opened = set()\n"
        "def hear(event, values):\n"
        "    opened.add(str(values[0])) if event == 'open' and 'lrft/methods/' in str(values[0]) else None\n"
        "sys.addaudithook(hear)\n"
        "from lrft.recipe.load import load_recipe\n"
        "from lrft.recipe.resolved import resolved, recipe_hash\n"
        "from lrft.recipe.json_schema import recipe_schema\n"
        "from lrft.recipe.catalog import table\n"
        "from lrft.commands import recipes, methods, env\n"
        "loaded = load_recipe(sys.argv[1], ['adapter=dora', 'quantization=nf4'])\n"
        "resolved(loaded.recipe), recipe_hash(loaded.recipe)\n"
        "assert 0 < len(opened) < 30, opened\n"
        "recipe_schema(), table(), env.system_facts()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'bitsandbytes', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(write(VALID))], check=True, timeout=60)
