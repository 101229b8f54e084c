"""Recipes and runs on the tiny model, and trainings that take no time: the loss is a formula of rate, rank and seed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.lab.runs import local as runs
from lrft.lab.runs import processes
from lrft.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]

RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {adapter}
data:
  train: {{source: {data}/train.jsonl, limit: 40}}
  eval: {{source: {data}/test.jsonl, limit: 6}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 3, batch_size: 1, max_length: 160, save_every: 10, device: cpu}}
"""

# Loss |log10(rate) + 2| + rank / 100 + seed / 1000, smallest at rate 0.01; above 0.5 the training diverges. A file
# called `slow` beside the folder of runs makes it wait for a signal, `broken` makes it fail, and with
# `small` ranks above 4 do not fit.
STAND_IN = """
import json, math, pathlib, signal, sys, time
import yaml
recipe, folder = yaml.safe_load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
root = folder.parent.parent
folder.mkdir(parents=True, exist_ok=True)
with open(root / "started", "a") as file:
    file.write(folder.name + "\\n")
rate, seed = float(recipe["optimizer"]["lr"]), recipe["train"]["seed"]
if (root / "broken").exists():
    print("error: data.train: no rows"); sys.exit(3)
if (root / "small").exists() and recipe["adapter"]["rank"] > 4:
    print("error: out of memory; lower train.batch_size"); sys.exit(5)
if rate > 0.5:
    print("error: step 2: loss nan"); sys.exit(4)
def stopped(*_):
    (folder / "saved").touch(); sys.exit(130)
signal.signal(signal.SIGINT, stopped)
if (root / "slow").exists():
    (folder / "waiting").touch(); time.sleep(60)
loss = abs(math.log10(rate) + 2) + recipe["adapter"]["rank"] / 100 + seed / 1000
lines = [
    {"step": 1, "loss": 9.0, "grad_norm": 0.5, "seconds": 1.0},
    {"step": 2, "loss": loss, "eval_loss": loss, "seconds": 0.5},
]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "run.json").write_text(json.dumps({"versions": {"lrft": "0"}, "hardware": {"cores": 2}, "git": None}))
for name, size in (("adapter", 1000), ("checkpoints/step-2", 3000), ("checkpoints/step-1", 9)):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "manifest.json").write_bytes(b"0" * size)
(folder / "result.json").write_text(json.dumps(
    {"trainable": 100, "seconds": 2.0, "peak_memory_bytes": 2**20, "loss": loss}
))
"""


@pytest.fixture
def recipe(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`recipe("a", "{method: lora, rank: 4}", extra)` -> a.yaml."""

    def write(name: str, adapter: str = "{method: lora, rank: 4, alpha: 8}", extra: str = "") -> Path:
        path = tmp_path / f"{name}.yaml"
        data = ROOT / "recipes" / "data" / "quickstart"
        path.write_text(RECIPE.format(model=tiny(), adapter=adapter, data=data) + extra)
        return path

    return write


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is the stand-in for a training."""

    def command(recipe: Path, folder: Path) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(recipe), str(folder)]

    monkeypatch.setattr(runs, "training_command", command)
    monkeypatch.setattr(processes, "WAIT", 0.01)


@pytest.fixture(scope="session")
def trained_once(tiny, tmp_path_factory) -> Callable[..., Path]:
    """`trained_once("dora", "quantization=nf4")` -> the run of three steps of a smoke recipe on the tiny model.

    All tests share it, so none writes into it.
    """
    made: dict[tuple[str, ...], Path] = {}

    def get(name: str, *overrides: str) -> Path:
        if (name, *overrides) not in made:
            folder = tmp_path_factory.mktemp("spectra") / name
            small = [f"model.name={tiny()}", "data.train.limit=20", "data.eval.limit=4", "train.device=cpu"]
            recipe = load_recipe(ROOT / "recipes" / "smoke" / f"{name}.yaml", [*small, *overrides])
            train(recipe, folder)
            made[(name, *overrides)] = folder
        return made[(name, *overrides)]

    return get


@pytest.fixture(scope="module")
def trained(trained_once, tmp_path_factory) -> Callable[..., Path]:
    """The same as a module's own copy: what inspects or scores a run leaves files in its folder."""
    copies: dict[tuple[str, ...], Path] = {}

    def get(name: str, *overrides: str) -> Path:
        asked = (name, *overrides)
        if asked not in copies:
            folder = tmp_path_factory.mktemp("trained") / name
            copies[asked] = Path(shutil.copytree(trained_once(*asked), folder))
        return copies[asked]

    return get
