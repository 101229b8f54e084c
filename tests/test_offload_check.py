"""scripts/offload_check.py, in its short form: a small model, really trained both ways, and the search on numbers."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from safetensors import safe_open

import offload_check
from lrft.registry.errors import UsageError

SHORT = [
    "--layers",
    "2",
    "--hidden",
    "128",
    "--wide",
    "256",
    "--length",
    "32",
    "--ways",
    "disk",
    "--spare",
    "1MB",
]


@pytest.mark.slow
def test_a_small_model_trains_both_ways_to_the_same_losses(capsys):
    found = offload_check.main([*SHORT[:-4], "--spare", "1MB"])
    assert found["memory"]["losses"] == found["disk"]["losses"] and len(found["disk"]["losses"]) == 2
    assert all(second > 0 for one in found.values() for second in one["seconds"])
    for one in found.values():
        assert one["fits"] and 0 < one["anonymous"] < one["resident"] < 4 * 2**30
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("way") for line in lines] == ["memory", "disk", None]


@pytest.mark.slow
def test_what_is_seen_above_the_cap_is_ended_and_does_not_fit():
    assert offload_check.main([*SHORT, "--cap", "100MiB"])["disk"]["fits"] is False


def test_the_largest_is_found_by_halving(monkeypatch):
    tried: list[int] = []

    def run(layers: int) -> dict[str, object]:
        tried.append(layers)
        return {"layers": layers, "fits": layers <= 11}

    assert offload_check.largest(run, 1, 40)["layers"] == 11 and len(tried) <= 6
    assert offload_check.largest(run, 12, 40) is None


def test_a_disk_that_is_to_stay_free_is_asked_before_a_model_is_made(monkeypatch):
    monkeypatch.setattr(offload_check.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    monkeypatch.setattr(offload_check, "write_recipe", lambda *_: pytest.fail("it was made"))
    with pytest.raises(UsageError, match="are needed, and 1,000,000,000 are free"):
        offload_check.main(["--layers", "4"])


def test_the_model_has_the_numbers_that_are_said_and_none_is_another_twice(tmp_path):
    config = offload_check.shape(2, 128, 256)
    recipe = offload_check.write_recipe(tmp_path, config, "none", 1, 8)
    held = {}
    for file in sorted((tmp_path / "model").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            held |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    sizes = dict(offload_check.parts(config))
    assert {name: tensor.numel() for name, tensor in held.items()} == sizes
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == sizes.keys()
    matrices = [tensor.flatten()[:99] for tensor in held.values() if tensor.ndim == 2]
    assert len({tuple(part.tolist()) for part in matrices}) == len(matrices) == 16
    assert 0.019 < float(held["lm_head.weight"].float().std()) < 0.021
    assert "quantization: none" in recipe.read_text()


def test_memory_of_a_process_that_has_ended_is_none():
    assert offload_check.memory_of(2**22 + 1) == {}
    mine = offload_check.memory_of(os.getpid())
    assert 10**7 < mine["anonymous"] < mine["resident"]
