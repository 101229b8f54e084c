"""Every smoke recipe trains, resumes nothing, and merges, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrft.api.merge import merge
from lrft.api.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, AXES
from lrft.registry.errors import NotMergeable
from lrft.training.folder import RunFolder

SMOKE = sorted((Path(__file__).parents[1] / "recipes" / "smoke").glob("[!_]*.yaml"))


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_a_smoke_recipe_trains_three_steps_and_merges(on_tiny, tmp_path, path):
    small = [*on_tiny(path), "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    loaded = load_recipe(path, small)
    result = train(loaded, tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["step"] == len(lines) == 3
    assert lines[-1]["loss"] < lines[0]["loss"] * 1.05
    adapter = loaded.recipe.adapter
    if adapter is not None and "mergeable" not in ADAPTERS.declared(adapter.method).provides:
        with pytest.raises(NotMergeable, match=adapter.method):
            merge(RunFolder(tmp_path / "run"), tmp_path / "model", None)
        assert not (tmp_path / "model").exists()
        return
    record = merge(RunFolder(tmp_path / "run"), tmp_path / "model", None)
    assert record["kl_mean"] < 1e-3  # smoke recipes compute in float32


def test_every_method_has_a_smoke_recipe():
    chosen = {axis: set() for axis in AXES}
    for path in SMOKE:
        for axis, settings in load_recipe(path, ["model.name=x/y"]).recipe.parts().items():
            chosen[axis].add(settings.method)
    for axis, registry in AXES.items():
        assert set(registry.names()) - chosen[axis] == set(), axis
