"""Processes of this machine: what they do when whoever began them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ends with its parent on Linux alone"
)

BEGIN = """
import sys, time
from types import SimpleNamespace
from pathlib import Path
from lrft.lab.runs.executor import Work
from lrft.lab.runs.processes import Processes
folder = Path(sys.argv[1])
child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(300)"
run = SimpleNamespace(folder=folder / "runs" / "one")
handle = Processes(1).start(Work(run, "one", lambda: [sys.executable, "-c", child]))
time.sleep(300)
"""


def until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Not gone, nor waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_training_ends_with_the_process_that_was_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", BEGIN, str(tmp_path)], cwd=tmp_path)
    file = tmp_path / "pid"
    try:
        until(lambda: file.is_file() and file.read_text())
        child = int(file.read_text())
        assert alive(child)
        parent.kill()
        parent.wait()
        until(lambda: not alive(child), 20)
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.slow
def test_a_search_that_was_killed_while_it_trains_goes_on(tiny, tmp_path):
    """Real trainings of a real command; what it left neither trains on nor is in the way."""
    (tmp_path / "space.yaml").write_text("adapter.rank: [2, 4, 8]\n")
    words = [
        "search",
        "smoke/lora",
        f"model.name={tiny()}",
        "train.device=cpu",
        "train.max_steps=3",
        "--quiet",
    ]
    words += ["--space", "space.yaml", "--budget", "3", "--method", "grid", "--jobs", "2", "--out", "out"]
    command = [sys.executable, "-m", "lrft", *words]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    out = tmp_path / "out"
    until(lambda: len(list(out.glob("runs/*/run.json"))) == 2, 200)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arms = [json.loads(line) for line in (out / "arms.jsonl").read_text().splitlines()]
    assert [arm["arm"] for arm in arms] == [0, 1, 2] and all(arm["score"] < 7 for arm in arms)
    assert (out / "best.yaml").is_file()
