"""Every script under scripts/ runs: those in Python in this process, those in bash with an environment of stand-ins."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import bench_ceiling
import bench_generate
import bench_memory
import bench_optim
import bench_pairs
import bench_record
import bench_rows
import bench_settings
import bench_sides
import bench_train
import check_plan
import evidence
import gpu_check
import gpu_steps
import make_bed
import performance_page
import same_bytes
import svg_plot
from lrft.cli import app
from lrft.core.adapted import adapted
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import LrftError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p for p in (ROOT / "scripts").iterdir() if p.is_file() and p.suffix in ("", ".py"))
BASH = {"make_beds", "quickstart", "setup-env", "test"}  # each has its tests below

STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
[ "${FAILS:-}" != "$(basename "$0") $1" ]
"""


def imported_by(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {alias.name.partition(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return found | {(n.module or "").partition(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}


def test_every_script_has_a_test():
    """One in Python is imported by a test or by another script, or by the site, which test_docs.py builds; of those in
    bash each is among those called below."""
    users = [*(ROOT / "tests").rglob("test_*.py"), *(p for p in SCRIPTS if p.suffix)]
    used = {user: imported_by(user) for user in users}
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    alone = [
        path.name
        for path in SCRIPTS
        if path.suffix
        and not any(path.stem in names for user, names in used.items() if user != path)
        and f"scripts/{path.name}" not in site
    ]
    assert alone == []
    assert {path.name for path in SCRIPTS if not path.suffix} == BASH


def in_process(monkeypatch, module) -> None:
    """Let a script run `lrft` here, where torch is loaded already, and not as a process."""
    monkeypatch.chdir(ROOT)

    def run(command: list[str], **_: object) -> SimpleNamespace:
        if command[1:3] != ["-m", "lrft"]:
            return subprocess.run(command, check=False)
        done = CliRunner().invoke(app, command[3:])
        code = done.exception.exit_code if isinstance(done.exception, LrftError) else done.exit_code
        return SimpleNamespace(
            returncode=code, stdout=done.stdout, stderr=f"{done.stderr}{done.exception or ''}"
        )

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))


def small(tiny, *more: str) -> list[str]:
    """Arguments of a benchmark on the tiny model, on a machine as busy as it likes."""
    return [
        "--model",
        str(tiny()),
        "--foreign",
        "inf",
        "--eager",
        "--rows",
        "2",
        "--length",
        "24",
        "--rank",
        "4",
        *more,
    ]


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)


@pytest.mark.parametrize("rows", ["random", "gsm8k"])
def test_bench_train_times_both_steps_on_equal_losses_and_records_it(tiny, tmp_path, capsys, rows):
    pytest.importorskip("bitsandbytes")
    arguments = small(tiny, "--pairs", "1", "--record", str(tmp_path / "record.json"))
    if rows == "gsm8k":
        lines = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(12)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        arguments += ["--gsm8k", str(tmp_path / "rows.jsonl"), "--quantization", "none"]
    bench_train.main(arguments)
    record = last_line(capsys)
    (pair,) = record["result"]["pairings"]
    (sample,) = pair["samples"]
    assert sample["lrft:lora"] > 0 and sample["peft:lora"] > 0
    assert sample["lrft:lora loss"] == pytest.approx(sample["peft:lora loss"], rel=0.02)
    assert pair["trained"] == {"lrft:lora": 8192, "peft:lora": 8192}
    assert pair["ratio"] is None and pair["missed"] == "only 1 quiet pairs, 0 discarded: no headline"
    assert json.loads((tmp_path / "record.json").read_text()) == [record]
    assert str(tmp_path) not in json.dumps(record) and "--record" not in record["command"]
    assert record["versions"]["torch"] and record["settings"]["foreign"] is None


def test_a_recorded_command_has_no_path_of_this_machine_and_can_be_repeated(tmp_path):
    given = ["--gsm8k", "/data/train.jsonl", "--model=/models/a", "--record", "/x.json", "--rows", "2"]
    said = bench_record.command("bench_train.py", given)
    assert said == "python scripts/bench_train.py --gsm8k train.jsonl --model=a --rows 2"
    assert bench_record.command("b.py", ["--record=/x.json", "--full"]) == "python scripts/b.py --full"
    file = tmp_path / "new" / "file.json"
    for number in (1, 2):
        bench_record.append(file, {"n": number})
    assert json.loads(file.read_text()) == [{"n": 1}, {"n": 2}]


def test_bench_train_puts_methods_beside_lora_and_beside_peft_where_it_has_them(tiny, capsys):
    names = "lora,nola,diablo,none_such"
    arguments = small(tiny, "--pairs", "5", "--quantization", "none", "--adapters", names)
    with pytest.raises(LrftError, match="none_such"):
        bench_train.main(arguments)
    arguments[-1] = "lora,nola,diablo"
    said = bench_train.main(arguments)["result"]["pairings"]
    sides = [tuple(pair["sides"]) for pair in said]
    assert sides[:3] == [("lrft:lora", "peft:lora"), ("lrft:nola", "lrft:lora"), ("lrft:nola", "peft:nola")]
    assert len(sides) == 5
    by_sides = dict(zip(sides, said, strict=True))
    assert "PEFT holds nola as LORA" in by_sides["lrft:nola", "peft:nola"]["missed"]
    assert "PEFT has no form for diablo" in by_sides["lrft:diablo", "peft:diablo"]["missed"]
    for pair in said:
        if pair["missed"] is None:
            a, b = pair["sides"]
            ratios = sorted(sample[b] / sample[a] for sample in pair["samples"])
            assert pair["ratio"] == {"median": ratios[2], "min": ratios[0], "max": ratios[-1]}
            assert pair["share"][a] > 0
    table = bench_train.methods_table(said).splitlines()
    assert table[1].split()[:2] == ["lora", "1.00"] and len(table) == 4
    nola = by_sides["lrft:nola", "lrft:lora"]["ratio"]["median"]
    assert table[2].split()[1] == f"{1 / nola:.2f}"
    assert table[2].split()[2] == "-"


def test_bench_train_draws_dropout_on_both_sides_and_refuses_it_where_there_is_none(tiny):
    settings = bench_settings.Settings(str(tiny()), rank=4, rows=2, length=24, dropout=0.5, eager=True)
    ours = bench_sides.lrft_side(settings.but(quantization="none"))
    assert {module.adapter.config.dropout for _, module in adapted(ours.model.hf)} == {0.5}
    assert bench_sides.peft_config(settings, ours.keys).lora_dropout == 0.5
    with pytest.raises(LrftError, match="dropout"):
        bench_sides.lrft_side(settings.but(adapter="shira"))


def test_bench_train_draws_a_curve_over_a_share_of_the_layers(tiny):
    arguments = small(tiny, "--quantization", "none", "--pairs", "1", "--curve", "layers")
    result = bench_train.main(arguments)["result"]
    assert result["curve"] == "layers" and [point["x"] for point in result["points"]] == [1, 2]
    one, both = (point["trained"]["lrft:lora"] for point in result["points"])
    assert both == 2 * one
    with pytest.raises(LrftError, match="two measurements"):
        bench_train.main([*arguments, "--adapters", "lora"])


@pytest.fixture
def others_accelerate():
    """Another library's settings of accelerate, which are the process's, and would be the next training's too."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("others_accelerate")
def test_bench_train_steps_trl_on_the_same_loss(tiny):
    pytest.importorskip("trl")
    arguments = small(tiny, "--peer", "trl", "--pairs", "1", "--quantization", "none")
    (pair,) = bench_train.main(arguments)["result"]["pairings"]
    (sample,) = pair["samples"]
    assert sample["lrft:lora loss"] == pytest.approx(sample["trl:lora loss"], rel=1e-3)


def test_bench_train_says_which_peer_is_missing(tiny, monkeypatch):
    monkeypatch.setattr(bench_sides.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LrftError, match=r"trl is not installed; `pip install trl`"):
        bench_train.main(small(tiny, "--peer", "trl"))
    with pytest.raises(LrftError, match="name another --adapter"):
        bench_train.main(small(tiny, "--peer", "none", "--quantization", "none"))


def test_pairs_give_up_among_other_processes_and_have_a_headline_of_five(capsys):
    calls: list[str] = []

    def side(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, step=lambda item: calls.append(name) or 1.0)

    a, b = side("a"), side("b")
    assert bench_pairs.measure(a, b, ["item"], 2, -1.0) == ([], 8)
    assert len(calls) == 16
    calls.clear()
    pairs, _ = bench_pairs.measure(a, b, ["item", "other"], 5, float("inf"))
    assert "".join(calls) == "abbaabbaab" and [pair["item"] for pair in pairs] == [0, 1, 0, 1, 0]
    found = bench_pairs.summary(a, b, pairs, 0, [8, 8])
    assert found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert "no headline" not in capsys.readouterr().out
    pairs = [{"item": 0, "a": 2.0, "b": 3.0}] * 4
    assert bench_pairs.summary(a, b, pairs, 1, [8])["ratio"] is None
    counted = bench_pairs.summary(a, b, [*pairs, {"item": 1, "a": 1.0, "b": 4.0}], 1, [8, 20])
    assert counted["ratio"] == {"median": 1.5, "min": 1.5, "max": 4.0}
    assert counted["tokens_per_second"] == {"a": 4.0, "b": 8 / 3}


class Products(TorchDispatchMode):
    """Counts two operations for every term of every product of matrices; torch's own counter leaves out `addmm_`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if re.search(r"mm", str(function)):
            a, b = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            self.operations += 2 * a.numel() * b.shape[-1]
        return function(*args, **(kwargs or {}))


def test_the_arithmetic_of_a_step_is_that_of_the_products_it_takes(tiny):
    settings = bench_settings.Settings(
        str(tiny()), rank=4, rows=2, length=24, quantization="none", eager=True
    )
    (work,) = bench_rows.make_work(settings)
    shapes = bench_ceiling.shapes_of(settings)
    assert shapes.head == (520, 64) and sum(shapes.maps.values()) == 14
    side = bench_sides.lrft_side(settings)
    with Products() as counted:
        side.step(work)
    said = bench_ceiling.step_operations(shapes, work.lengths, work.targets, side.trained)
    # Taken and not counted: the upper half of causal attention, where it is computed and masked. Counted and not
    # taken: the gradients of the inputs of q, k and v in the first layer, which nothing asks for.
    upper = 6 * shapes.attention * sum(n * (n - 1) for n in work.lengths)
    first = 2 * work.tokens * 64 * (64 + 32 + 32 + 3 * 4)
    assert 0.99 * (said - first) < counted.operations < 1.01 * (said + upper - first)


def test_bench_ceiling_weighs_every_shape_by_how_often_it_comes(tiny, capsys):
    result = bench_ceiling.main(small(tiny, "--repeats", "1"))["result"]
    operations = sum(4.0 * r["out"] * r["in"] * r["tokens"] * r["times"] for r in result["shapes"])
    seconds = sum(
        r["times"] * 2.0 * r["out"] * r["in"] * r["tokens"] * (1 / r["forward"] + 1 / r["dx"])
        for r in result["shapes"]
    )
    assert result["gflops"] == pytest.approx(operations / seconds)
    assert result["trained"] == 8192
    shapes = bench_ceiling.Shapes({(2, 3): 5}, (7, 3), 4)
    assert shapes.body == 30
    assert bench_ceiling.step_operations(shapes, [2, 1], 1, 10) == 360 + 84 + 180 + 24 * 8
    assert bench_ceiling.tokens_per_second(2.0, 1_000_000, 3) == 6000


def test_bench_memory_asks_a_fresh_process_and_one_that_fails_is_told(tiny, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = bench_memory.main(small(tiny, "--peer", "none", "--quantization", "none", "--steps", "1"))[
        "result"
    ]
    (marks,) = result["samples"]["lrft"]
    assert 50 << 20 < marks["step"] <= marks["whole"] and result["step"]["ratio"] is None
    found = bench_memory.report({"lrft": [{"step": 1, "whole": 4}], "peft": [{"step": 2, "whole": 4}]})
    assert (found["step"]["ratio"], found["whole"]["ratio"]) == (0.5, 1.0)
    done = SimpleNamespace(returncode=1, stderr="first\nno room\n", stdout="")
    monkeypatch.setattr(bench_memory.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(LrftError, match="the process of lrft ended with 1: no room"):
        bench_memory.child(bench_settings.Settings(), {"side": "lrft", "keys": None}, 1)


def test_a_process_that_measures_memory_takes_the_steps_of_its_side(tiny, capsys):
    settings = bench_settings.Settings(
        str(tiny()), rank=4, rows=2, length=24, quantization="none", eager=True
    )
    described = bench_memory.described(settings)
    asked = json.dumps({"side": "peft", "keys": described})
    bench_memory.main([*settings.arguments(), "--steps", "1", "--child", asked])
    assert last_line(capsys).keys() == {"step", "whole"}
    assert bench_settings.settings_of(bench_settings.parser("").parse_args(settings.arguments())) == settings


def test_bench_generate_makes_as_many_tokens_on_each_side(tiny, capsys):
    arguments = small(tiny, "--pairs", "1", "--new", "3", "--quantization", "none")
    result = bench_generate.main(arguments)["result"]
    named = [pair["sides"] for pair in result["pairings"]]
    assert named == [
        ["lrft", "lrft bare"],
        ["lrft", "peft"],
        ["lrft bare", "peft bare"],
        ["peft", "peft bare"],
    ]
    for pair in result["pairings"]:
        (sample,) = pair["samples"]
        assert [sample[f"{side} loss"] for side in pair["sides"]] == [6.0, 6.0]


def test_bench_optim_counts_the_bytes_of_every_optimizer_and_names_those_that_cannot(capsys):
    result = bench_optim.main(
        ["--count", "1", "--shapes", "64x48", "--rank", "4", "--foreign", "inf", "--steps", "5"]
    )
    rows = {row["optimizer"]: row for row in result["result"]["optimizers"]}
    assert set(rows) == set(OPTIMIZERS.names())
    assert rows["adamw"]["bytes"] == 8 * rows["adamw"]["numbers"] == 8 * 4 * (64 + 48)
    assert rows["sgd"]["ms"] > 0 and rows["sgd"]["n"] == 5
    assert "computes losses itself" in rows["mezo"]["missed"] and "role matrix" in rows["galore"]["missed"]
    busy = bench_optim.main(
        ["--count", "1", "--shapes", "8x8", "--full", "--optimizers", "adamw", "--foreign", "-1"]
    )
    (row,) = busy["result"]["optimizers"]
    assert row["ms"] is None and row["bytes"] == 8 * 64 and "no time" in row["missed"]
    for wrong in (["--shapes", "64"], ["--optimizers", "none_such"]):
        with pytest.raises(LrftError, match=r"no such optimizer|no shape"):
            bench_optim.main(wrong)


def test_a_benchmark_ends_in_one_sentence_where_the_user_can_mend_it(capsys):
    def fails() -> None:
        raise LrftError("this will not do")

    assert bench_train.guarded(fails) == 1 and bench_train.guarded(lambda: None) == 0
    assert capsys.readouterr().err == "error: this will not do\n"


def test_gpu_check_says_that_there_is_no_card(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    said = capsys.readouterr().err
    assert said == "gpu_check: torch sees no CUDA card here; --rehearse runs the same code on the CPU\n"


SOME_CHECKS = ["packed rows", "generation"]


@pytest.mark.parametrize(
    "only", [SOME_CHECKS, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_gpu_check_rehearses_what_it_would_do_on_a_card(tmp_path, capsys, monkeypatch, only):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = [word for name in only or () for word in ("--only", name)]
    code = gpu_check.main(["--rehearse", *asked, "--record", str(tmp_path / "card.json")])
    (record,) = json.loads((tmp_path / "card.json").read_text())
    said = {check["name"]: check["said"] for check in record["result"]["checks"]}
    assert code == 0, said
    assert list(said) == (only or list(gpu_check.CHECKS))
    assert record["settings"]["rehearse"] is True and record["settings"]["only"] == only
    for name in {"a step on bfloat16", "a step on NF4", "packed rows"} & said.keys():
        assert "PEFT began at loss" in said[name] and said[name].endswith("no headline")
    page = performance_page.page([{**record, "number": 1}])
    assert performance_page.NOTHING in page and "gpu_check" not in page.partition("## Records")[2]
    assert record["command"] == shlex.join(["python", "scripts/gpu_check.py", "--rehearse", *asked])
    record["settings"]["rehearse"], record["hardware"]["gpu"] = False, "A card"
    assert "| packed rows | A card | passed |" in performance_page.page([{**record, "number": 1}])
    if only is None:
        assert "the adapters are the same bytes" in said["killed and resumed"]
        assert re.search(r"^2/\d+ tests collected", said["tests marked gpu"])


def test_gpu_check_goes_on_after_a_failure_and_names_what_had_no_time(capsys):
    def breaks(bench: object) -> dict:
        raise RuntimeError("no kernel image\nmore")

    failed = gpu_check.attempt("a", breaks, None, 1.0)
    assert (failed["passed"], failed["said"]) == (False, "RuntimeError: no kernel image")
    assert gpu_check.attempt("a", breaks, None, 0.0)["said"] == "left out: no time was left"


def test_gpu_check_keeps_lrfts_figures_where_peft_fails(monkeypatch):
    def breaks(*_: object) -> None:
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_steps, "peer_side", breaks)
    bench = gpu_check.Bench("cpu", Path("model"), 1.0, 64, 1, True, Path("scratch"))
    ours = SimpleNamespace(keys={}, trained=1)
    found = {"passed": True, "said": "fast"}
    said = found | gpu_steps.against(bench, found, ours, bench.settings(), None, None)
    assert said == {"passed": True, "said": "fast; PEFT fails here (MemoryError: CUDA out of memory)"}


def test_gpu_check_takes_what_torch_alone_has_where_bitsandbytes_is_absent(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_steps, "random_work", lambda settings: [None])
    monkeypatch.setattr(
        gpu_steps, "beside", lambda _, s, work, peer: asked.append((s, peer)) or {"said": "fast"}
    )
    bench = gpu_check.Bench("cpu", Path("model"), 1.0, 64, 1, True, Path("scratch"))
    said = gpu_steps.nf4_step(bench)["said"]
    ((settings, peer),) = asked
    assert (settings.quantization, peer) == ("nf4_reference", False)
    assert said.startswith("fast; bitsandbytes is not installed: nf4_reference stands in")


def measured_record(kind: str, result: dict, **settings) -> dict:
    made = {
        "hardware": {"cores": 2, "cpu": "a CPU", "gpu": None},
        "versions": {"torch": "2.13", "peft": None},
    }
    common = {
        "model": "pkg:a/B-1.5B.Q4_1.gguf",
        "adapter": "lora",
        "rank": 16,
        "dropout": 0.0,
        "adapted": None,
    }
    common |= {"quantization": "nf4", "rows": 4, "length": 256, "gsm8k": None, "checkpointing": False}
    command = f"python scripts/bench_{kind}.py"
    return {"kind": kind, "date": "2026-12-01", "command": command, **made} | {
        "settings": common | settings,
        "result": result,
        "number": 1,
    }


def test_the_page_of_measurements_shows_records_of_every_kind_and_what_was_missed():
    ratio = {"median": 2.0, "min": 1.0, "max": 4.0}
    rates = {"lrft:dora": 100.0, "lrft:lora": 200.0, "peft:dora": 50.0, "lrft:miss": 10.0}
    beside = {"sides": ["lrft:dora", "peft:dora"], "n": 5, "ratio": ratio, "missed": None}
    beside |= {"tokens_per_second": rates, "share": {"lrft:dora": 0.5, "peft:dora": 0.25}}
    own = {"sides": ["lrft:dora", "lrft:lora"], "n": 5, "ratio": ratio, "missed": None}
    none = {"sides": ["lrft:miss", "peft:miss"], "n": 1, "ratio": None, "missed": "only 1 quiet pairs"}
    points = [{**beside, "x": x, "tokens_per_second": {"lrft:dora": x, "peft:dora": 2 * x}} for x in (4, 16)]
    sizes = {"bytes": {"lrft": 2**20, "peft": 2**21}, "ratio": 0.5}
    row = {
        "optimizer": "adamw",
        "numbers": 8,
        "bytes": 64,
        "ms": None,
        "n": 0,
        "missed": "only 0 quiet steps",
    }
    written = {
        "sides": ["lrft", "peft"],
        "n": 5,
        "ratio": ratio,
        "tokens_per_second": {"lrft": 9.0, "peft": 4.0},
    }
    bare = {"sides": ["lrft", "lrft bare"], "n": 0, "ratio": None, "missed": "only 0 quiet pairs"}
    records = [
        measured_record("train", {"pairings": [beside, own, none]}, dropout=0.05),
        measured_record("train", {"curve": "rank", "points": [*points, {**none, "x": 64}]}),
        measured_record("memory", {"step": sizes, "whole": sizes, "n": 1}),
        measured_record("ceiling", {"gflops": 800.4, "tokens_per_second": 1417.0}),
        measured_record("generate", {"new": 32, "pairings": [{**written, "missed": None}, bare]}),
        measured_record("optim", {"optimizers": [row]}, full=True),
    ]
    page = performance_page.page(records)
    first = (
        "B-1.5B, 4 x 256 random tokens, every position learnt | `dora`, rank 16, nf4, dropout 0.05 | PEFT | "
    )
    assert f"| {first}2.00 (1.00 to 4.00) | 5 | 100 and 50 | 50% and 25% |" in page
    assert "`dora`, rank 16, nf4, dropout 0.05 | 0.50 (0.25 to 1.00) | 5 |" in page
    assert "| 4 | 250.00 | 125.00 | 2.00 (1.00 to 4.00) | 5 |" in page and "](measured/rank.svg)" in page
    assert "lrft 1, PEFT 2 | 0.50" in page and "| 800 | 1,417 |" in page and "lrft 9, peft 4" in page
    assert "| `adamw` | all weights | 8 |  | 0 | 8.00 |" in page
    assert "lrft beside lrft bare: only 0 quiet pairs." in page
    assert "lrft miss beside PEFT miss: only 1 quiet pairs." in page and performance_page.NOTHING in page
    (plot,) = performance_page.plots(records).items()
    assert plot[0].name == "rank.svg" and plot[1].count("<circle") == 4 and plot[1].count("<polyline") == 2


def test_the_page_of_measurements_holds_every_record_that_is_kept():
    page = performance_page.PAGE.read_text()
    kept = performance_page.records()
    assert len(kept) >= 4 and all(f"`{record['command']}`" in page for record in kept)
    assert "1.49 (1.28 to 1.63)" in page and "2.36 (1.60 to 3.86)" in page


def test_a_plot_puts_doubled_values_at_equal_distances_and_zero_at_the_bottom():
    text = svg_plot.line_plot({"a & b": [(2, 5.0), (4, 10.0), (8, 0.0)]}, "rank", "ms")
    line = re.search(r'<polyline points="([^"]*)"', text)[1]
    (x2, y2), (x4, y4), (x8, y8) = (map(float, point.split(",")) for point in line.split())
    assert x4 - x2 == pytest.approx(x8 - x4) and y8 - y2 == pytest.approx(y2 - y4)
    assert "a &amp; b" in text and xml.etree.ElementTree.fromstring(text).tag.endswith("svg")
    with pytest.raises(ValueError, match="positive values"):
        svg_plot.line_plot({"a": [(0, 1.0)]}, "rank", "ms")
    assert [svg_plot.nice(value) for value in (0.3, 1.0, 9.5, 47)] == [0.4, 1.0, 10.0, 60.0]


class OneByOne:
    """A pool of threads without threads: training here has to be in the main one."""

    def __init__(self, jobs: int) -> None:
        self.map = map

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_evidence_trains_every_rate_once_and_writes_the_best(tiny, tmp_path, monkeypatch):
    in_process(monkeypatch, evidence)
    monkeypatch.setattr(evidence, "ThreadPoolExecutor", OneByOne)
    for name in ("train", "test"):
        rows = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [f"model.name={tiny()}", "train.max_steps=2", "train.eval_every=2", "data.format.render=plain"]
    monkeypatch.setattr(evidence, "METHODS", {"lora": (small, (1e-3, 1e-2)), "other": (small, (1e-3,))})
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--jobs", "1", "--only", "lora"]
    assert evidence.main(arguments) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    assert [json.loads(line)["lr"] for line in lines.splitlines()] == [1e-3, 1e-2]
    assert "error" not in lines
    (row,) = [x for x in (tmp_path / "out" / "table.md").read_text().splitlines() if x.startswith("| lora")]
    assert f"{min(json.loads(line)['loss'] for line in lines.splitlines()):.3f} |" in row
    assert evidence.main(arguments) == 0
    assert (tmp_path / "out" / "results.jsonl").read_text() == lines


def test_same_bytes_finds_a_difference_and_none_where_there_is_none(tmp_path, monkeypatch, capsys):
    in_process(monkeypatch, same_bytes)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert same_bytes.main([str(before), "--only", "dora"]) == 0
    assert same_bytes.main([str(after), "--against", str(before), "--only", "dora"]) == 0
    assert "1 recipes give the same bytes" in capsys.readouterr().out
    found = json.loads(before.read_text())["dora"]
    assert {"metrics"} < found.keys() and any("merged" in name for name in found)
    monkeypatch.setattr(same_bytes, "SMALL", [*same_bytes.SMALL, "optimizer.lr=0.002"])
    assert same_bytes.main([str(after), "--against", str(before), "--only", "dora"]) == 1
    assert "dora: metrics differs" in capsys.readouterr().out


def test_a_tiny_model_is_made_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_tiny_model.py", str(tmp_path / "model"), "gpt2"])
    runpy.run_path(str(ROOT / "scripts" / "make_tiny_model.py"), run_name="__main__")
    made = Path(capsys.readouterr().out.splitlines()[-1])
    assert made == tmp_path / "model" and (made / "model.safetensors").is_file()


@pytest.fixture
def bash(tmp_path) -> Callable[..., tuple[int, str, list[str]]]:
    """`bash("quickstart", "--x", FAILS="ruff check")` -> exit code, standard error, and what was called.

    In a folder with the scripts alone, so that none removes anything of the repository, beside a virtual environment
    that fits and whose commands write themselves down.
    """
    root, venv, log = tmp_path / "root", tmp_path / "venv", tmp_path / "log"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (venv / "bin").mkdir(parents=True)
    for name in ("lrft", "python", "ruff", "mypy", "mkdocs", "pytest"):
        (venv / "bin" / name).write_text(STAND_IN)
        (venv / "bin" / name).chmod(0o755)
    digest = hashlib.sha256(str(root.resolve()).encode())
    for name in ("constraints.txt", "pyproject.toml", "scripts/setup-env"):
        digest.update((root / name).read_bytes())
    (venv / "lrft-setup").write_text(digest.hexdigest() + "\n")

    def run(script: str, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
        log.write_text("")
        environment = {"PATH": os.environ["PATH"], "VENV": str(venv), "LOG": str(log), **variables}
        done = subprocess.run(
            [root / "scripts" / script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr, log.read_text().splitlines()

    return run


def test_setup_env_does_nothing_where_the_environment_fits(bash):
    assert bash("setup-env") == (0, "", [])


def test_setup_env_refuses_an_old_python(bash):
    code, said, _ = bash("setup-env", PYTHON="false")
    assert code == 2 and "lrft needs Python 3.11 or newer" in said


def test_the_quickstart_trains_evaluates_and_merges_and_goes_on_where_it_stopped(bash, tmp_path):
    train = "lrft train recipes/quickstart.yaml --out runs/quickstart"
    rest = ["lrft eval runs/quickstart --baseline", "lrft merge runs/quickstart --out model/"]
    assert bash("quickstart") == (0, "", [train, *rest])
    (tmp_path / "root" / "runs" / "quickstart").mkdir(parents=True)
    assert bash("quickstart") == (0, "", [f"{train} --resume", *rest])
    code, _, called = bash("quickstart", FAILS="lrft eval")
    assert code != 0 and called[-1] == rest[0]


def test_the_test_command_checks_all_and_takes_a_part(bash):
    """Types are checked while tests run, so which of the two begins first is not said."""
    checks = ["ruff check .", "ruff format --check ."]
    spread = "-n auto --dist loadfile --no-loadscope-reorder"
    site = ["mkdocs build --strict"]
    for arguments, more, options in (
        ([], site, spread),
        (["--fast"], [], f"{spread} --fast"),
        (["tests/test_loss.py", "-x"], site, "tests/test_loss.py -x"),
    ):
        code, said, called = bash("test", *arguments)
        beside = ["mypy lrft scripts", *more, f"pytest --durations=25 {options}"]
        assert (code, said, called[:2], sorted(called[2:])) == (0, "", checks, sorted(beside))
    for failing in ("mypy lrft", "pytest --durations=25"):
        assert bash("test", FAILS=failing)[0] != 0
    code, _, called = bash("test", FAILS="ruff check")
    assert code != 0 and called == checks[:1]


def test_make_beds_makes_both_beds_of_texts_that_are_named(bash, tmp_path):
    assert bash("make_beds")[0] != 0 and "set LRFT_DATA" in bash("make_beds")[1]
    code, _, called = bash("make_beds", "here", LRFT_DATA=str(tmp_path))
    assert code == 0 and [line.split()[:3] for line in called] == [
        ["python", "scripts/make_bed.py", f"here/{name}"] for name in ("p1", "p2")
    ]
    (tmp_path / "text").mkdir()
    words = "".join(p.read_text() for p in sorted((ROOT / "lrft" / "methods" / "adapters").glob("*.py")))
    for name in ("tinyshakespeare.txt", "wikitext2_valid.txt"):
        (tmp_path / "text" / name).write_text(words)
    for line in called:  # the arguments are those of make_bed; of the steps two are enough
        arguments = [*line.split()[3:], "--steps", "2", "--pretrain", "2", "--vocabulary", "400"]
        make_bed.main([str(tmp_path / line.split()[2]), *arguments])
        assert (tmp_path / line.split()[2] / "recipe.yaml").is_file()


def test_check_plan_plans_each_of_its_cases_on_its_own_model(tmp_path):
    recipe = check_plan.write_recipe(tmp_path)
    planned = [
        check_plan.plan(recipe, check_plan.CASES[case])["total"] for case in ("lora", "lora, more rows")
    ]
    assert planned[0] < planned[1]
    assert check_plan.table({"lora": (90, 100)}).endswith("| lora | 0 | 0 | 0.90 |")
