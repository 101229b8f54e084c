"""A valid recipe, and what is wrong with a changed one."""

from __future__ import annotations

from pathlib import Path

from lrft.recipe.load import load_recipe
from lrft.registry.errors import Problem, RecipeError

VALID = """\
model:
  name: owner/model
adapter:
  method: lora
  rank: 8
optimizer:
  method: adamw
  lr: 2e-4
schedule: cosine
data:
  train: rows.jsonl
  eval: rows.jsonl
  format: chat
train:
  max_steps: 100
  batch_size: 2
eval:
  tasks: [loss]
"""


def problems_of(path: Path | str, *overrides: str) -> list[Problem]:
    """What is wrong with a recipe, none when it loads."""
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return error.problems
    return []


def changed(old: str, new: str) -> str:
    """The valid recipe with one passage replaced."""
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)
