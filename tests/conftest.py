"""Tiny models and batches shared by the tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = Path(__file__).parents[1]


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "make_tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(family="llama", tied=True, bias=False)` -> folder of a two-layer random model with its tokenizer."""
    made: dict[Any, Path] = {}
    maker = _maker()

    def get(family: str = "llama", tied: bool = True, bias: bool = False) -> Path:
        key = (family, tied, bias)
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"{family}-{tied}-{bias}"
            made[key] = maker.make(folder, family, tied=tied, bias=bias)
        return made[key]

    return get
