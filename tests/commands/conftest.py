"""The command line in this process, as a user calls it, on the tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lrft.cli import main

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: float32}}
quantization: nf4
adapter: {{method: lora, rank: 4}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: {data}/train.jsonl, limit: 20}}
  eval: {{source: {data}/test.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 4, batch_size: 2, max_length: 160, device: cpu}}
eval: {{tasks: [loss]}}
"""


class Called(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What standard output holds, which is one document and nothing else."""
        return json.loads(self.out, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))


@pytest.fixture
def call(capfd, monkeypatch, tmp_path) -> Callable[..., Called]:
    """`call("recipes", "ls")` -> exit code and what went to both streams, children and libraries included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "WANDB_SILENT"):
        monkeypatch.setenv(name, "1")  # put back after the test, whatever the command sets

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["lrft", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        sys.stdout.flush()
        return Called(stopped.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def recipe(tiny, tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny(), data=DATA))
    return path


@pytest.fixture
def table_file(tiny, tmp_path) -> Path:
    """A table of one number, which no model of ours has."""
    (tmp_path / "base.yaml").write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\nadapter: {{method: lora, rank: 4, alpha: 8}}\n"
        f"data: {{train: {DATA}/train.jsonl, format: {{method: prompt_completion, render: plain}}}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: A table\npaper: Nobody, 2026.\nrecipe: base.yaml\n"
        "columns: {trainable: {metric: trainable, provenance: C}}\n"
        "rows: [{label: LoRA r4, cells: {trainable: 1}}]\n"
    )
    return path
