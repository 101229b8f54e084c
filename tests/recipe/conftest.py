"""Places to write recipes in."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest


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
