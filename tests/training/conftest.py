"""A small recipe that trains in a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RECIPE = """
model: {{name: {model}, dtype: {dtype}}}
quantization: nf4
adapter: {{method: lora, rank: 4, dropout: 0.1}}
optimizer: {{method: adamw, lr: 0.003}}
schedule: {{method: cosine, warmup_ratio: 0.1}}
data:
  train: {{source: {data}/train.jsonl, limit: 60}}
  eval: {{source: {data}/test.jsonl, limit: 6}}
  format: {{method: prompt_completion, render: chat}}
train:
  max_steps: 8
  batch_size: 2
  gradient_accumulation: 2
  max_length: 160
  save_every: 3
  eval_every: 4
  device: cpu
eval: {{tasks: [loss]}}
"""


@pytest.fixture(scope="session")
def tiny_recipe(tiny: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny_recipe(folder, dtype="bfloat16")` -> a recipe on the tiny Llama and the quickstart data."""

    def write(folder: Path, dtype: str = "bfloat16", family: str = "llama") -> Path:
        path = folder / "tiny.yaml"
        text = RECIPE.format(model=tiny(family), dtype=dtype, data=ROOT / "recipes" / "data" / "quickstart")
        path.write_text(text)
        return path

    return write


@pytest.fixture
def recipe_file(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`recipe_file(dtype="bfloat16")` -> the same in the folder of the test."""
    return partial(tiny_recipe, tmp_path)
