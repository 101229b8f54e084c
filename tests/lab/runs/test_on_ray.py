"""Runs as tasks of Ray: against a stand-in of its library, and on a cluster of this machine where Ray is installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from secrets import token_hex

import pytest
from typer.testing import CliRunner

from lrft.cli import app
from lrft.lab.runs import on_ray
from lrft.lab.runs.where import place_runs
from lrft.lab.sweep.sweep import Settings, sweep
from lrft.lab.tables.full import runs as full_runs
from lrft.registry.errors import Interrupted, LrftError, MissingExtra, UsageError
from tests.lab.runs.fake_ray import FakeRay

RANKS = ("adapter.rank=2,4", "--metric", "loss", "--jobs", "2")
SETTINGS = ("--cluster", "ray", "--cluster-set", "address=local")

SCORER = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "eval"
folder.mkdir(parents=True)
(folder / "adapter.json").touch()
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([*sys.argv[1:], str(os.getpid()), "sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""
HEAD = """
import ray, sys
found = ray.init(
    address="local",
    num_cpus=2,
    include_dashboard=False,
    log_to_driver=False,
    logging_level="ERROR",
    _temp_dir=sys.argv[1],
)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(on_ray, "PAUSE", 0.02)
    monkeypatch.setattr("lrft.lab.runs.job.PAUSE", 0.02)
    yield fake
    fake.full = False
    fake.pool.shutdown()


def swept(*arguments):
    found = CliRunner().invoke(app, ["sweep", *map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def sweep_ranks(source, out):
    """The same without the command, so that errors arrive."""
    settings = Settings(out, "loss", 2, cluster=place_runs("ray", ["address=local"], out, 2))
    return sweep(str(source), [RANKS[0]], settings)


def losses(record) -> dict[str, float]:
    return {row["label"]: row["loss"] for row in record["rows"]}


def when(condition, act) -> None:
    def watch():
        while not condition():
            time.sleep(0.01)
        act()

    threading.Thread(target=watch, daemon=True).start()


def test_a_sweep_on_ray_is_that_of_processes_and_asks_for_what_was_set(stand_in, ray, recipe, tmp_path):
    source, out = recipe("a"), tmp_path / "ray"
    settings = [*SETTINGS, "--cluster-set", "num_gpus=1", "--cluster-set", "resources={a100: 0.5}"]
    record = swept(source, *RANKS, "--out", out, *settings)
    assert losses(record) == losses(swept(source, *RANKS, "--out", tmp_path / "here"))
    names = {option.pop("name") for option in ray.options}
    assert names == {folder.name for folder in (out / "runs").iterdir()}
    assert ray.options == [{"num_cpus": 1, "max_retries": 3, "num_gpus": 1, "resources": {"a100": 0.5}}] * 2
    swept(source, *RANKS, "--out", out, *settings)
    assert len(ray.options) == 2, "what is finished is submitted again"


@pytest.mark.parametrize("queued", [False, True])
def test_an_interruption_lets_tasks_save_and_empties_the_queue(stand_in, ray, recipe, tmp_path, queued):
    out, source = tmp_path / "out", recipe("a")
    out.mkdir()
    (out / "slow").touch()
    ray.full = queued

    def ready():
        return len(ray.options if queued else list(out.glob("runs/*/waiting"))) == 2

    when(ready, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="0 of 2 runs finished"):
        sweep_ranks(source, out)
    assert len(list(out.glob("runs/*/saved"))) == (0 if queued else 2)
    assert (out / "started").exists() is not queued
    (out / "slow").unlink()
    ray.full = False
    assert None not in losses(sweep_ranks(source, out)).values()


def test_a_lost_task_and_a_failed_training_are_told_apart(stand_in, ray, recipe, tmp_path):
    out, source = tmp_path / "out", recipe("a")
    out.mkdir()
    (out / "broken").touch()
    for lost, said, code in (
        (False, r"exit code 3: data\.train: no rows", 3),
        (True, r"exit code 1: its task was lost \(WorkerCrashedError: the worker died; .*max_retries=N", 1),
    ):
        ray.lost = lost
        with pytest.raises(LrftError, match=said) as error:
            sweep_ranks(source, out)
        assert error.value.exit_code == code


def test_what_ray_cannot_do_is_refused_or_said(ray, tmp_path, capsys, monkeypatch):
    for settings, said in (
        ([], r"no cluster at auto \(Could not find any running Ray instance.*`ray start --head`"),
        (["address=ray://head:10001"], "a driver that is no node is not supported"),
        (["address=local", "colour=red"], "Invalid option keyword colour"),
        (["num_gpus"], "write key=value"),
    ):
        with pytest.raises(UsageError, match=said):
            place_runs("ray", settings, tmp_path, 2)
    place_runs("ray", ["num_cpus=3", "num_gpus=1"], tmp_path, 2)
    said = capsys.readouterr().err
    assert "num_cpus=3: the largest node has 2;" in said and "num_gpus=1: the largest node has 0;" in said
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[ray\]'"):
        place_runs("ray", [], tmp_path, 2)


def test_a_run_of_a_full_table_is_scored_where_it_was_trained(ray, recipe, tmp_path, monkeypatch):
    from lrft.lab.runs.planned import make_arm, plan_run

    run = plan_run(make_arm("a", recipe("a")), 1e-2, 0, tmp_path)
    monkeypatch.setattr(
        full_runs, "evaluation_command", lambda folder: [sys.executable, "-c", SCORER, str(folder)]
    )
    monkeypatch.setattr(full_runs, "run_all", lambda *_: None)
    full_runs.finish([run], 1, place_runs("ray", ["address=local"], tmp_path, 1))
    assert [option["name"] for option in ray.options] == [f"{run.folder.name}-eval"]


def test_a_tied_process_ends_with_its_parent(tmp_path):
    """As the training of a worker that Ray kills."""
    child = [sys.executable, "-m", "lrft.lab.runs.tied"]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *child], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        command = Path(f"/proc/{pid}/comm")
        until(lambda: command.read_text() == "sleep\n")
        parent.kill()
        until(lambda: not command.exists())
    late = subprocess.run([*child, "1", "true"], capture_output=True, text=True, check=False)
    assert late.returncode == 1 and "the process that began this training has ended" in late.stderr


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture
def head(monkeypatch):
    """The address of a Ray cluster of two CPUs on this machine."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    for name, value in (("USAGE_STATS_ENABLED", "0"), ("AUTH_MODE", "token"), ("AUTH_TOKEN", token_hex(32))):
        monkeypatch.setenv(f"RAY_{name}", value)
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-c", HEAD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        yield process.stdout.readline().strip()
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()  # Ray's own processes end with it


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten processes that import torch, one after the other
def test_a_sweep_on_a_ray_cluster_killed_and_interrupted_goes_on_to_the_bit(head, recipe, tmp_path):
    source, out = recipe("a"), tmp_path / "out"
    points = [*RANKS, "train.max_steps=60", "train.save_every=2"]
    command = [sys.executable, "-m", "lrft", "sweep", str(source), *points, "--keep-checkpoints", "--json"]
    on_it = [*command, "--out", str(out), "--cluster", "ray", "--cluster-set", f"address={head}"]

    def cut(sign: int, beyond: int) -> str:
        """Send the signal once both runs are beyond a step; what the command said."""
        with subprocess.Popen(on_it, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            until(lambda: steps(out) >= beyond or process.poll() is not None, 240)
            process.send_signal(sign)
            said = process.stderr.read()
        assert process.returncode != 0, said
        return said

    cut(signal.SIGKILL, beyond=2)
    until(lambda: not trainings(out))  # the workers of a driver that is gone are ended, and take theirs along
    first = steps(out)
    assert "2 runs to save" in cut(signal.SIGTERM, beyond=first + 2)
    assert not trainings(out) and first + 2 <= steps(out) < 60
    done = subprocess.run(on_it, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = subprocess.run(
        [*command, "--out", str(tmp_path / "here")], capture_output=True, text=True, check=True
    )
    assert losses(json.loads(done.stdout)) == losses(json.loads(here.stdout))
    assert sum("resum" in log.read_text() for log in out.glob("logs/*.log")) == 2


def steps(out: Path) -> int:
    """The last checkpoint of the run that is least far."""
    found = [
        max((int(path.name.partition("-")[2]) for path in run.glob("checkpoints/step-*")), default=0)
        for run in out.glob("runs/*")
    ]
    return min(found) if len(found) == 2 else 0


def trainings(out: Path) -> list[int]:
    """Processes that train in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and any(word.startswith(bytes(out / "runs")) for word in words):
            found.append(int(path.parent.name))
    return found
