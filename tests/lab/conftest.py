"""Small runs to look at and to report on, each trained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.api.train import train
from lrft.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Callable[..., Path]:
    """`trained("dora", "quantization=nf4")` -> the run folder of three steps of a smoke recipe on the tiny model."""
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
