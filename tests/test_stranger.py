"""A method of one's own is one file in its folder: nothing else is touched, and every command knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STRANGERS = {
    "row_gains": "methods/adapters",
    "sign_descent": "methods/optim",
    "staircase": "methods/schedules",
    "every_other": "methods/select",
    "longest_row": "evaluation/tasks",
}
RECIPE = """
extends: {root}/recipes/smoke/_base.yaml
model: {{name: {model}}}
adapter: {{method: row_gains, strength: 0.5}}
optimizer: {{method: sign_descent, lr: 0.003}}
schedule: {{method: staircase, stairs: 2}}
select: {{method: every_other}}
train: {{max_steps: 4, device: cpu, save_every: 2}}
data: {{train: {{source: {data}, limit: 20}}, eval: {{source: {data}, limit: 4}}}}
eval: {{tasks: [longest_row, loss]}}
"""


class Called(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package with the strangers' files in their folders."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "lrft", folder / "lrft", ignore=shutil.ignore_patterns("__pycache__"))
    for name, place in STRANGERS.items():
        shutil.copy(ROOT / "tests" / "strangers" / f"{name}.py", folder / "lrft" / place)
    return folder


@pytest.fixture(scope="module")
def lrft(house) -> Iterator[Callable[..., Called]]:
    """`lrft("methods", "ls")` -> the exit code and both streams of a command of that copy, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(house)}
    command = [sys.executable, str(ROOT / "tests" / "in_turn.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=house, env=environment, **pipes) as process:

        def call(*arguments: str) -> Called:
            print(json.dumps(arguments), file=process.stdin, flush=True)
            return Called(*json.loads(process.stdout.readline()))

        yield call
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_file_is_short(name):
    lines = (ROOT / "tests" / "strangers" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80


def test_five_files_of_strangers_are_trained_resumed_scored_and_merged_together(house, lrft, tiny):
    data = ROOT / "recipes" / "data" / "quickstart" / "train.jsonl"
    (house / "recipe.yaml").write_text(RECIPE.format(root=ROOT, model=tiny(), data=data))
    done = lrft("train", "recipe.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    rates = [json.loads(line)["lr"] for line in (house / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.003, 0.003, 0.0015, 0.0015])
    shutil.rmtree(house / "run" / "checkpoints" / "step-4")
    shutil.rmtree(house / "run" / "adapter")
    done = lrft("train", "recipe.yaml", "--out", "run", "--resume")
    assert done.returncode == 0 and "resuming after step 2 of 4" in done.stderr, done.stderr
    done = lrft("eval", "run", "--json")
    assert json.loads(done.stdout)["adapter"]["longest_row"]["longest"] > 10, done.stderr
    done = lrft("merge", "run", "--out", "model", "--json")
    assert json.loads(done.stdout)["kl_mean"] < 1e-3, done.stderr


def test_a_strangers_method_is_listed_shown_and_refused_like_any_other(lrft):
    assert "staircase" in lrft("methods", "ls", "schedule").stdout
    assert "gain on every row" in lrft("methods", "show", "row_gains").stdout
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    done = lrft("train", recipe, "adapter={method: row_gains, strength: 0}")
    assert done.returncode == 2 and "adapter.strength: must be a number greater than 0" in done.stderr
