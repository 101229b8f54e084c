"""Runs as jobs: of submitit's local cluster, and of Slurm where its five commands are a script of this folder."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lrft.commands.compare import compare_command
from lrft.lab.compare import settings as comparing
from lrft.lab.compare.command import compare_recipes
from lrft.lab.runs import cluster
from lrft.lab.runs.cluster import Cluster, parse_settings
from lrft.lab.runs.planned import make_arm, plan_run
from lrft.registry.errors import Interrupted, LrftError, MissingExtra, UsageError

submitit = pytest.importorskip("submitit")
FAKE_SLURM = Path(__file__).with_name("fake_slurm.py")


@pytest.fixture
def two(recipe):
    return [str(recipe("a")), str(recipe("b", "{method: lora, rank: 6, alpha: 8}"))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cluster, "PAUSE", 0.02)
    monkeypatch.setattr("submitit.core.core.PicklingExecutor._throttle", lambda self: None)
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0.5)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder that holds what was submitted, as the fake Slurm wrote it down."""
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_SLURM} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    submitit.SlurmJob.watcher.clear()  # remembers how job 1 of another test ended
    return state


def compare(arguments, out, name="local", grid="1e-2", seeds="1", jobs=2, settings=()):
    chosen = {"by": "steps", "rates": grid, "seeds": seeds, "jobs": jobs, "cluster": name}
    compare_recipes(arguments, comparing.parse_settings(out, **chosen, cluster_settings=settings))
    return json.loads((out / "report.json").read_text())


def started(out: Path) -> list[str]:
    return (out / "started").read_text().split()


def when(condition, act) -> threading.Thread:
    """Act once the condition holds."""

    def watch():
        while not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_local_jobs_give_what_processes_give_and_a_second_call_submits_nothing(stand_in, two, tmp_path):
    out = tmp_path / "out"
    record = compare(two, out, grid="1e-2,1", seeds="1")
    assert [arm["losses"] for arm in record["arms"]] == [[pytest.approx(0.04)], [pytest.approx(0.06)]]
    assert (
        record["arms"][0]["grid"][1]["loss"] is None
    )  # exit code of a run that diverged, through two processes
    assert "step 2: loss nan" in next(out.glob("runs/*/diverged.json")).read_text()
    assert "as jobs of local" in (out / "report.md").read_text()
    assert len(started(out)) == 6
    compare(two, out, grid="1e-2,1", seeds="1")
    assert len(started(out)) == 6


def test_a_failed_job_stops_the_comparison_with_the_error_of_its_training(stand_in, two, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken").touch()
    with pytest.raises(LrftError, match=r"exit code 3: data\.train: no rows .*the same command") as error:
        compare(two, out, jobs=1)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_an_interruption_lets_jobs_save_and_the_same_call_goes_on(stand_in, two, tmp_path, slurm, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slow").touch()
    when(lambda: len(list(out.glob("runs/*/waiting"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="0 of 2 runs finished"):
        compare(two, out, name)
    assert len(list(out.glob("runs/*/saved"))) == 2
    (out / "slow").unlink()
    record = compare(two, out, name)
    assert None not in record["arms"][0]["losses"]


def test_settings_of_the_command_reach_slurm_as_submitit_writes_them(stand_in, two, tmp_path, slurm):
    app = typer.Typer()
    app.command()(compare_command)
    flags = ["--match", "steps", "--lr-grid", "1e-2", "--seeds", "1", "--jobs", "2", "--cluster", "slurm"]
    for setting in ("timeout_min=240", "slurm_partition=gpu", "gpus_per_node=1", "mem_gb=2"):
        flags += ["--cluster-set", setting]
    done = CliRunner().invoke(app, [*two, "--out", str(tmp_path / "out"), *flags], catch_exceptions=False)
    assert done.exit_code == 0
    flags = (slurm / "1" / "script").read_text()
    for flag in ("--time=240", "--partition=gpu", "--gpus-per-node=1", "--mem=2GB"):
        assert f"#SBATCH {flag}\n" in flags
    assert len(list(slurm.glob("*/script"))) == 2


def test_a_job_whose_time_is_over_saves_is_queued_again_and_goes_on(stand_in, two, tmp_path, slurm):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slow").touch()

    def end_of_time():
        (out / "slow").unlink()
        for pid in slurm.glob("*/task"):
            os.kill(int(pid.read_text()), signal.SIGUSR2)

    when(lambda: len(list(out.glob("runs/*/waiting"))) == 2, end_of_time)
    record = compare(two, out, "slurm")
    assert None not in record["arms"][0]["losses"]
    assert len(list(out.glob("runs/*/saved"))) == 2
    assert len(started(out)) == 4
    assert len(list(slurm.glob("*/requeued"))) == 2


def test_a_call_that_was_cut_off_finds_its_jobs_again(stand_in, two, tmp_path, slurm, capsys):
    """As when the machine that submits goes down: the jobs run on, and are not submitted twice."""
    out = tmp_path / "out"
    (slurm / "full").touch()  # or they might be done before anybody looks for them
    for label, path in zip("ab", two, strict=True):
        Cluster("slurm", [], out, 2).start(plan_run(make_arm(label, path), 1e-2, 0, out))
    later = time.monotonic() + 4
    for job in "12":
        begin = ["scontrol", "requeue", job]
        when(lambda: time.monotonic() > later, lambda begin=begin: subprocess.run(begin, check=True))
    record = compare(two, out, "slurm")
    assert None not in record["arms"][0]["losses"]
    assert "is job 2 already" in capsys.readouterr().err
    assert len(list(slurm.glob("*/script"))) == len(started(out)) == 2


def test_a_job_that_was_taken_away_is_named_with_its_state_and_what_helps(
    stand_in, two, tmp_path, slurm, monkeypatch
):
    monkeypatch.setattr(submitit.SlurmJob.watcher, "_delay_s", 0.5)
    out = tmp_path / "out"
    out.mkdir()
    (out / "slow").touch()
    when(lambda: list(out.glob("runs/*/waiting")), lambda: subprocess.run(["scancel", "1"], check=True))
    with pytest.raises(
        LrftError, match=r"job 1 was lost \(CANCELLED, see .*--cluster-set timeout_min=MINUTES"
    ):
        compare(two, out, "slurm", jobs=1)


def test_jobs_in_the_queue_are_cancelled_by_an_interruption(stand_in, two, tmp_path, slurm):
    out = tmp_path / "out"
    (slurm / "full").touch()
    when(lambda: (slurm / "2").exists(), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        compare(two, out, "slurm")
    assert not (out / "started").exists()
    assert len(list(slurm.glob("*/cancelled"))) == 2


def test_a_refused_submission_is_said_as_slurm_said_it(stand_in, two, tmp_path, slurm):
    with pytest.raises(
        LrftError, match=r"--cluster slurm: a, .* could not be submitted: sbatch: invalid partition"
    ):
        compare(two, tmp_path / "out", "slurm", settings=["slurm_partition=nowhere"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("debug", [], "--cluster debug: choose local or ray or slurm"),
        ("slurm", [], "--cluster slurm: its commands are not found here"),
        ("local", ["colour=red"], "--cluster-set colour=red: Parameter 'colour' need"),
        ("local", ["slurm_colour=red"], "--cluster-set slurm_colour=red: Unknown argument 'colour'"),
        ("local", ["timeout_min=soon"], "--cluster-set timeout_min=soon: .*int"),
        ("local", ["gpu"], "--cluster-set gpu: write key=value"),
        (None, ["mem_gb=2"], "--cluster-set mem_gb=2: there is no cluster"),
    ],
)
def test_a_cluster_or_setting_that_does_not_exist_is_refused(
    two, tmp_path, monkeypatch, name, settings, message
):
    monkeypatch.setattr("submitit.slurm.slurm.shutil.which", lambda command: None)
    with pytest.raises(UsageError, match=message):
        compare(two, tmp_path / "out", name, settings=settings)


def test_values_of_settings_are_yaml_and_times_stay_text():
    found = parse_settings(
        ["timeout_min=240", "mem_gb=1.5", "slurm_time=4:00:00", "slurm_setup=[module load x]"]
    )
    assert found == {
        "timeout_min": 240,
        "mem_gb": 1.5,
        "slurm_time": "4:00:00",
        "slurm_setup": ["module load x"],
    }


def test_without_submitit_the_install_line_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("submitit"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"--cluster slurm: .*pip install 'lrft\[cluster\]'"):
        Cluster("slurm", [], tmp_path, 1)
