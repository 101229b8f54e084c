"""A small table of the exact tier to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

DATA = Path(__file__).parents[3] / "recipes" / "data" / "quickstart" / "train.jsonl"


@pytest.fixture
def table_file(tmp_path, tiny) -> Callable[..., Path]:
    """`table_file(rows=...)` -> a table of one LoRA row on the tiny model, with other top-level keys."""

    def write(**changes) -> Path:
        (tmp_path / "base.yaml").write_text(
            f"model: {{name: {tiny()}, dtype: float32}}\nadapter: {{method: lora, rank: 4, alpha: 8}}\n"
            f"data: {{train: {DATA}, format: {{method: prompt_completion, render: plain}}}}\n"
        )
        table = {
            "title": "A table",
            "paper": "Nobody, 2026.",
            "recipe": "base.yaml",
            "columns": {"trainable": {"metric": "trainable", "provenance": "C"}},
            "rows": [{"label": "LoRA r4", "cells": {"trainable": 1}}],
            **changes,
        }
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump(table))
        return path

    return write
