"""Whole processes in turn: the same rows on both sides, times and peaks of the processes, and what is shown of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

import bench_memory
import bench_whole
import performance_page
from bench_settings import Settings
from lrft.recipe.load import load_recipe
from lrft.registry.errors import LrftError

SAYS = (
    "import sys; print('loading', file=sys.stderr); print('step 1/2  loss 1', file=sys.stderr, flush=True); "
)


@pytest.fixture
def settings(tiny):
    return Settings(str(tiny()), rank=4, rows=1, length=48, examples=2, quantization="none", eager=True)


def process(code: str) -> bench_whole.Process:
    return bench_whole.Process("lrft:whole", lambda out: [sys.executable, "-c", SAYS + code])


def test_a_process_is_timed_to_its_first_step_and_to_its_end_and_one_that_fails_is_told(tmp_path):
    quick = Settings()
    ran = bench_whole.run(process("import time; time.sleep(0.3); a = b'1' * 50_000_000"), tmp_path, quick)
    assert 0 < ran.first < ran.seconds - 0.3 and ran.peak > 50_000_000 and ran.foreign >= 0
    ran = bench_whole.run(process("import time; time.sleep(60)"), tmp_path, quick, to_first=True)
    assert ran.seconds < 60
    with pytest.raises(LrftError, match=r"lrft:whole ended with 3: no room"):
        bench_whole.run(process("print('no room', file=sys.stderr); sys.exit(3)"), tmp_path, quick)
    silent = bench_whole.Process("peft:whole", lambda out: [sys.executable, "-c", "pass"])
    with pytest.raises(LrftError, match="peft:whole ended with 0"):
        bench_whole.run(silent, tmp_path, quick)


def test_both_are_given_the_same_rows_and_the_recipe_trains_all_of_them_once(settings, tmp_path, capsys):
    rows = bench_whole.rows_of(settings, 3)
    assert rows == bench_whole.rows_of(settings, 3) and len(rows) == 6
    assert max(len(one.input_ids) for one in bench_whole.encoded(settings, rows)) <= settings.length
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = bench_whole.recipe_of(settings, tmp_path / "rows.jsonl")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == recipe
    loaded = load_recipe(tmp_path / "recipe.yaml").recipe
    assert loaded.train.epochs == 1 and loaded.train.packing and loaded.adapter.rank == 4
    from lrft.build.dataset import read_text

    ours = [one.input_ids for one in read_text(loaded).train]
    theirs = bench_whole.encoded(settings, rows)
    assert sorted(ours) == sorted(one.input_ids for one in theirs)
    capsys.readouterr()
    bench_whole.train_padded(settings, {"rows": rows, **bench_memory.described(settings)})
    said = capsys.readouterr().err.splitlines()
    steps = [line.split()[1] for line in said if line.startswith("step ")]
    assert steps == ["1/3", "2/3", "3/3"]


def test_rows_of_gsm8k_are_those_that_fit(settings, tmp_path):
    lines = [{"question": "a" if i != 1 else "a b " * 600, "answer": f"#### {i}"} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = bench_whole.rows_of(settings.but(gsm8k=tmp_path / "train.jsonl"), 2)
    assert [row["completion"] for row in rows] == [" #### 0", " #### 2", " #### 3", " #### 4"]


def test_disturbed_processes_are_run_again_and_five_quiet_pairs_make_a_figure(
    settings, tmp_path, monkeypatch
):
    calls = []

    def run(process, out, settings, to_first=False):
        calls.append(process.name[0])
        foreign = 1.0 if len(calls) in (4, 9) else 0.0
        return bench_whole.Ran(2.0, 10.0 if process.name.startswith("l") else 30.0, 7, foreign)

    monkeypatch.setattr(bench_whole, "run", run)
    ours, theirs = (bench_whole.Process(f"{name}:whole", lambda out: []) for name in ("lrft", "peft"))
    found = bench_whole.in_turn(settings.but(pairs=5, foreign=0.1), ours, theirs, 300, tmp_path)
    assert "".join(calls) == "lp" + "lplppllplppllp"
    assert (found["n"], found["discarded"], found["ratio"]["median"]) == (5, 2, 3.0)
    assert found["tokens_per_second"] == {"lrft:whole": 30.0, "peft:whole": 10.0}
    assert found["first"]["peft:whole"] == 2.0 and found["peak"]["lrft:whole"] == 7
    calls.clear()
    started = bench_whole.launch(settings.but(pairs=5, foreign=0.1), "quickstart", tmp_path)
    assert len(calls) == 7 and started["first"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    calls.clear()
    few = bench_whole.launch(settings.but(pairs=2, foreign=0.1), "quickstart", tmp_path)
    assert few["first"] is None and few["missed"] == "only 2 quiet launches, 0 discarded: no figure"


def test_the_page_shows_whole_processes_and_launches():
    pair = {"sides": ["lrft:whole", "peft:whole"], "n": 5, "missed": None}
    pair |= {
        "ratio": {"median": 3.0, "min": 2.0, "max": 4.0},
        "peak": {"lrft:whole": 2**30, "peft:whole": 2**31},
    }
    pair |= {
        "tokens_per_second": {"lrft:whole": 30, "peft:whole": 10},
        "first": {"lrft:whole": 9, "peft:whole": 8},
    }
    few = {**pair, "ratio": None, "missed": "only 1 quiet pairs"}
    plain = {
        "model": "pkg:a/B-1.5B.Q4_1.gguf",
        "adapter": "lora",
        "gsm8k": "train.jsonl",
        "examples": 10,
        "rank": 16,
    }
    plain |= {"quantization": "nf4", "dropout": 0.0, "adapted": None, "checkpointing": False}
    results = [
        {"steps": 12, "pairings": [pair, few]},
        {"recipe": "quickstart", "n": 5, "first": {"median": 9.5, "min": 9.0, "max": 11.0}, "missed": None},
        {"recipe": "other", "n": 1, "first": None, "missed": "only 1 quiet launches"},
    ]
    made = {
        "hardware": {"cores": 2, "cpu": "a CPU", "gpu": None},
        "versions": {"torch": "2.13"},
        "kind": "whole",
    }
    records = [
        {**made, "number": n, "date": "2026-01-02", "command": "c", "settings": plain, "result": result}
        for n, result in enumerate(results, 1)
    ]
    page = performance_page.page(records)
    assert (
        "B-1.5B, 120 rows of GSM8K: packed by lrft, 10 a step padded by a peer | `lora`, rank 16, nf4 | PEFT"
        in page
    )
    assert "| 3.00 (2.00 to 4.00) | 5 | 30 and 10 | 9.0 and 8.0 | 1,024 and 2,048 | 1, 2026-01-02 |" in page
    assert (
        "From launch to the end of step 1 of `quickstart`: 9.50 (9.00 to 11.00) s (5 launches, record 2,"
        in page
    )
    assert (
        "Record 3: only 1 quiet launches." in page
        and "lrft whole beside PEFT whole: only 1 quiet pairs." in page
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--launch"]])
def test_the_quick_path_runs_real_processes(tiny, tmp_path, more):
    pytest.importorskip("peft")
    given = ["--model", str(tiny()), "--quantization", "none", "--rank", "4", "--rows", "1", "--length", "48"]
    if more:
        recipe = tmp_path / "recipe.yaml"
        small = f"{{name: {tiny()}, dtype: float32}}"
        data = Path(__file__).parents[1] / "recipes" / "data" / "quickstart" / "train.jsonl"
        recipe.write_text(
            f"model: {small}\nadapter: lora\ntrain: {{max_steps: 2, max_length: 256}}\n"
            f"data: {{train: {data}, format: {{method: prompt_completion, render: chat}}}}\n"
        )
        more = ["--launch", str(recipe)]
    record = bench_whole.main([*given, "--quick", *more])
    result = record["result"]
    if more:
        assert result["n"] == 1 and result["samples"][0] > 0 and "no figure" in result["missed"]
        return
    (pair,) = result["pairings"]
    assert pair["n"] == 1 and "no headline" in pair["missed"]
    assert all(0 < pair["first"][side] < pair["samples"][0][side] for side in pair["sides"])
    assert all(size > 50 << 20 for size in pair["peak"].values())
