"""The digest of the code that a recipe runs: it moves with what the recipe imports and with nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrft.lab.runs import digest
from lrft.lab.runs.digest import PACKAGE, TRAINING, code_digest, modules
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe

CHANGE = "\n# changed\n"


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "lrft"
    return Path(shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def package(copied) -> Iterator[Path]:
    """A copy of lrft's source to add comments to, which are gone after the test; imports are read off it once."""
    yield copied
    for path in copied.rglob("*.py"):
        path.write_text(path.read_text().removesuffix(CHANGE))
    digest._digest.cache_clear()
    digest._source_digest.cache_clear()


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", overrides).recipe


def changed(package: Path, file: str) -> None:
    path = package / file
    path.write_text(path.read_text() + CHANGE)


def after_change(package: Path, *files: str, of: Recipe) -> str:
    """The digest when these are other files. Digests are kept for a process by folder, until `package` forgets them."""
    for file in files:
        changed(package, file)
    return code_digest(of, package=package)


def test_the_same_code_elsewhere_has_the_same_digest(package, tmp_path):
    elsewhere = Path(shutil.copytree(package, tmp_path / "elsewhere" / "lrft"))
    assert code_digest(recipe(), package=package) == code_digest(recipe(), package=elsewhere)
    assert code_digest(recipe(), package=package) == code_digest(recipe())


NOT_RUN = [
    "methods/adapters/dora.py",
    "methods/optim/galore.py",
    "methods/optim/_projection.py",
    "methods/signals/grad.py",
    "data/formats/sharegpt.py",
    "evaluation/tasks/gsm8k.py",
    "commands/train.py",
    "lab/tables/exact/count.py",
    "lab/compare/report.py",
    "api/merging/merge.py",
]


def test_a_change_of_what_the_recipe_does_not_run_leaves_the_digest(package):
    """All at once: one that counted would move it. That each is a file of the package is seen as it is changed."""
    assert after_change(package, *NOT_RUN, of=recipe()) == code_digest(recipe())


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("core/adapter.py", []),
        ("training/loop.py", []),
        ("__init__.py", []),
        ("methods/adapters/lora.py", []),
        ("ops/low_rank.py", []),
        ("methods/adapters/lora.py", ["adapter.method=dora"]),  # its parent
        ("methods/quant/_bnb4bit.py", ["quantization=nf4"]),
        ("methods/signals/grad.py", ["init=lora_ga"]),
        ("methods/signals/_weight_gradient.py", ["init=lora_ga"]),
        ("data/formats/prompt_completion.py", []),
        ("evaluation/tasks/exact_match.py", []),
    ],
)
def test_a_change_of_what_the_recipe_runs_moves_the_digest(package, file, overrides):
    of = recipe(*overrides)
    assert after_change(package, file, of=of) != code_digest(of)


def test_a_helper_of_the_chosen_optimizer_moves_the_digest_of_that_recipe_alone(package):
    file = "methods/optim/_projection.py"
    projected = recipe("~adapter", "~quantization", "trainable=full", "optimizer={method: galore, rank: 4}")
    assert after_change(package, file, of=projected) != code_digest(projected)


def test_what_is_imported_in_a_process_is_among_the_modules():
    """The modules read off the source hold those that running Python imports."""
    script = (
        "import sys, lrft.api.training.train; print(*(n for n in sys.modules if n.split('.')[0] == 'lrft'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(modules(TRAINING))


def test_no_method_is_among_the_modules_of_a_training_without_a_recipe():
    assert not [name for name in modules(TRAINING) if name.startswith("lrft.methods.")]


def test_the_digest_needs_no_torch():
    script = (
        "import sys; from lrft.lab.runs.digest import code_digest; from lrft.recipe.load import load_recipe\n"
        "code_digest(load_recipe('quickstart').recipe); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
