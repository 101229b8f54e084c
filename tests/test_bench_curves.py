"""Cost curves: measured point by point beside LoRA, gone on with, and shown."""

from __future__ import annotations

import json

import pytest

import bench_curves
import bench_train
import performance_page
from lrft.registry.errors import LrftError


@pytest.fixture
def quick(tiny, tmp_path, monkeypatch):
    """`quick(*more)` -> arguments on the tiny model; memory is said without a process, which has a test of its own."""
    asked = []

    def child(settings, side, steps):
        asked.append((settings.adapter, settings.length, settings.rows, settings.rank, settings.adapted))
        return {"step": 1000 * len(asked), "whole": 0}

    monkeypatch.setattr(bench_curves, "child", child)
    monkeypatch.setattr(bench_train, "ceiling", lambda *_: {"gflops": 1.0})

    def arguments(*more: str) -> list[str]:
        own = [
            "--model",
            str(tiny()),
            "--quantization",
            "none",
            "--rank",
            "4",
            "--rows",
            "1",
            "--length",
            "16",
        ]
        return [*own, "--record", str(tmp_path / "curves.json"), *more]

    arguments.asked = asked
    arguments.file = tmp_path / "curves.json"
    return arguments


CURVES = {
    "length": ([64, 128], 1, [64, 64, 128, 128]),
    "batch": ([1, 2], 2, [1, 1, 2, 2]),
    "rank": ([4, 16], 3, [4, 4, 16, 16]),
    "layers": ([1, 2], 4, [1, 1, 2, 2]),
}


@pytest.mark.parametrize("names", ["layers", pytest.param("length,batch,rank", marks=pytest.mark.slow)])
def test_the_quick_path_times_both_at_each_value_and_asks_what_they_take(quick, names):
    found = bench_curves.main(quick("--quick", "--curves", names))
    assert [record["result"]["curve"] for record in found] == names.split(",")
    assert found == json.loads(quick.file.read_text())
    for place, record in enumerate(found):
        values, setting, asked = CURVES[record["result"]["curve"]]
        assert [point["x"] for point in record["result"]["points"]] == values
        cases = quick.asked[4 * place : 4 * place + 4]
        assert [case[0] for case in cases] == ["dora", "lora"] * 2
        assert [case[setting] for case in cases] == asked
        for point in record["result"]["points"]:
            (sample,) = point["samples"]
            assert sample["lrft:dora"] > 0 and sample["lrft:lora"] > 0
            assert point["memory"].keys() == {"lrft:dora", "lrft:lora"}
            assert point["ratio"] is None and "no headline" in point["missed"]


def test_what_is_measured_stays_and_the_rest_is_measured_by_the_same_command(quick, monkeypatch):
    measured = []
    ratio = {"median": 2.0, "min": 1.0, "max": 4.0}

    def one(settings, peer):
        measured.append(settings.rank)
        if len(measured) == 2:
            raise KeyboardInterrupt
        quiet = settings.rank != 64 or len(measured) > 4
        pair = {"sides": ["lrft:dora", "lrft:lora"], "n": 5, "missed": None if quiet else "no headline"}
        rates = {"lrft:dora": 100.0, "lrft:lora": 200.0}
        return {"pairings": [{**pair, "ratio": ratio if quiet else None, "tokens_per_second": rates}]}

    monkeypatch.setattr(bench_curves, "one", one)
    given = quick("--curves", "rank")
    with pytest.raises(KeyboardInterrupt):
        bench_curves.main(given)
    bench_curves.main(given)
    assert measured == [4, 16, 16, 64, 256]
    (record,) = bench_curves.main(given)  # 64 had been disturbed
    assert measured == [4, 16, 16, 64, 256, 64]
    assert [point["x"] for point in record["result"]["points"]] == [4, 16, 64, 256]
    assert json.loads(quick.file.read_text()) == [record]
    bench_curves.main([*given, "--adapter", "miss"])
    assert len(json.loads(quick.file.read_text())) == 2
    bench_curves.main(given)
    assert measured[6:] == [4, 16, 64, 256]


def test_a_wrong_curve_and_lora_itself_are_refused(quick):
    with pytest.raises(LrftError, match="--curves width: choose among length"):
        bench_curves.main(quick("--curves", "rank,width"))
    with pytest.raises(LrftError, match="name another one"):
        bench_curves.main(quick("--adapter", "lora"))


def test_the_page_draws_time_and_memory_of_every_method():
    sides, ratio = ["lrft:dora", "lrft:lora"], {"median": 0.5, "min": 0.25, "max": 1.0}
    points = [
        {
            "x": x,
            "sides": sides,
            "n": 5,
            "ratio": ratio,
            "missed": None,
            "tokens_per_second": {"lrft:dora": 100.0, "lrft:lora": 200.0},
            "memory": {"lrft:dora": 3 * 2**20, "lrft:lora": x * 2**20},
        }
        for x in (1, 2)
    ]
    lost = {"x": 4, "sides": sides, "n": 0, "ratio": None, "missed": "only 0 quiet pairs", "memory": {}}
    settings = dict.fromkeys(("gsm8k", "adapted"), None) | dict.fromkeys(("dropout", "checkpointing"), 0)
    settings |= {"model": "a/B-1.5B", "rows": 4, "length": 256, "rank": 16, "quantization": "nf4"}
    made = {
        "hardware": {"cores": 2, "cpu": "a CPU", "gpu": None},
        "versions": {"torch": "2.13"},
        "date": "2026-01-02",
        "command": "python scripts/bench_curves.py",
        "kind": "curves",
    }
    records = [
        {
            **made,
            "number": number,
            "settings": {**settings, "adapter": adapter},
            "result": {"curve": "batch", "points": [*points, lost]},
        }
        for number, adapter in ((1, "dora"), (2, "miss"))
    ]
    page = performance_page.page(records)
    row = "| 1 | 5.00 | 10.00 | 2.00 (1.00 to 4.00) | 5 | 1 | 3 |"
    assert page.count(row) == 2 and "rows of a step | lrft lora, ms a token | lrft dora, ms a token" in page
    plots = {path.name: text for path, text in performance_page.plots(records).items()}
    assert sorted(plots) == [
        "batch-dora-memory.svg",
        "batch-dora.svg",
        "batch-miss-memory.svg",
        "batch-miss.svg",
    ]
    assert all(f"(measured/{name})" in page and text.count("<circle") == 4 for name, text in plots.items())
    assert "Record 1: lrft dora beside lrft lora: only 0 quiet pairs." in page
