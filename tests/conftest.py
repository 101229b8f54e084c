"""Tiny models and batches shared by the tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, or they take each other's cores
    os.environ["OMP_NUM_THREADS"] = "1"

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


@pytest.fixture(scope="session")
def given_adapters(
    tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], list[str]]:
    """`given_adapters()` -> run folders of two adapters trained on the tiny model, for methods that are given some."""
    made: list[str] = []

    def get() -> list[str]:
        from lrft.api.train import train
        from lrft.recipe.load import load_recipe

        for name in ("lora", "rslora")[len(made) :]:
            folder = tmp_path_factory.mktemp("given") / name
            small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
            train(load_recipe(ROOT / "recipes" / "smoke" / f"{name}.yaml", small), folder, resume=False)
            made.append(str(folder))
        return made

    return get


@pytest.fixture(scope="session")
def on_tiny(
    tiny: Callable[..., Path], given_adapters: Callable[[], list[str]]
) -> Callable[[Path], list[str]]:
    """`on_tiny(path)` -> overrides that put a smoke recipe on the tiny model."""

    def overrides(path: Path) -> list[str]:
        from lrft.recipe.load import load_recipe

        found = [f"model.name={tiny()}"]
        adapter = load_recipe(path, ["model.name=x/y"]).recipe.adapter
        if adapter is not None and "adapters" in type(adapter).model_fields:
            found.append(f"adapter.adapters=[{', '.join(given_adapters())}]")
        return found

    return overrides
