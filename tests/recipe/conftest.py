"""A valid recipe, and a way to write it wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.core.errors import Problem, RecipeError
from lrft.recipe.load import load_recipe

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of rows, in which the tests write their recipes."""
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """`write(text, name="recipe.yaml")` -> path; the text may be indented."""

    def write_text(text: str, name: str = "recipe.yaml") -> Path:
        path = folder / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_text


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
