"""Short runs on the tiny model, as the tests of exports need them."""

from __future__ import annotations

from pathlib import Path

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: {dtype}}}
{body}
data:
  train: {{source: {data}/train.jsonl, limit: 12}}
  eval: {{source: {data}/test.jsonl, limit: 3}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 3, batch_size: 2, max_length: 160, device: cpu}}
optimizer: {{method: adamw, lr: {lr}}}
schedule: constant
"""


def trained(folder: Path, model: Path, body: str, dtype: str = "float32", lr: float = 0.05) -> Path:
    """The folder of a run of three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, dtype=dtype, body=body, data=DATA, lr=lr))
    train(load_recipe(folder / "recipe.yaml"), folder / "run", resume=False)
    return folder / "run"
