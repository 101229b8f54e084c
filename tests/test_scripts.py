"""Every script under scripts/ runs: those in Python in this process, those in bash with an environment of stand-ins."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import bench_step
import evidence
import make_bed
import same_bytes
from lrft.cli import app
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


@pytest.mark.parametrize("rows", ["random", "gsm8k"])
def test_bench_step_times_both_steps_on_equal_losses(tiny, tmp_path, capsys, rows):
    pytest.importorskip("bitsandbytes")
    arguments = ["--model", str(tiny()), "--pairs", "1", "--foreign", "inf", "--rows", "2", "--length", "24"]
    if rows == "gsm8k":
        lines = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(12)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        arguments += ["--gsm8k", str(tmp_path / "rows.jsonl"), "--quantization", "none"]
    bench_step.main(arguments)
    *_, said, last = capsys.readouterr().out.splitlines()
    (sample,) = json.loads(last)["samples"]
    assert sample["lrft"] > 0 and sample["peft"] > 0
    assert sample["lrft_loss"] == pytest.approx(sample["peft_loss"], rel=0.02)
    assert said == "only 1 quiet pairs, 0 discarded: no headline"


def test_bench_step_gives_up_among_other_processes_and_has_a_headline_of_five(capsys):
    calls: list[float] = []

    def step(item: dict) -> float:
        calls.append(1.0)
        return 1.0

    item = {"tokens": 8}
    assert bench_step.measure(step, step, [item], 2, -1.0) == ([], 8)
    assert len(calls) == 16
    pairs, _ = bench_step.measure(step, step, [item], 5, float("inf"))
    bench_step.report(pairs, 0, SimpleNamespace(pairs=5))
    assert "ratio" in json.loads(capsys.readouterr().out.splitlines()[-1])


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
        beside = ["mypy lrft", *more, f"pytest --durations=25 {options}"]
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
