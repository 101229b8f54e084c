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
def test_a_search_that_was_killed_with_its_trainings_goes_on_to_the_arms_of_one_that_was_not(tiny, tmp_path):
    """Real trainings of a real command, killed while two of them run."""
    (tmp_path / "space.yaml").write_text("adapter: [lora, dora]\nadapter.rank: [2, 4]\n")
    words = [
        "search",
        "smoke/lora",
        f"model.name={tiny()}",
        "train.device=cpu",
        "train.max_steps=3",
        "--quiet",
    ]
    words += [
        "--space",
        "space.yaml",
        "--budget",
        "4",
        "--method",
        "{method: evolution, population: 2, parents: 2}",
    ]
    command = [sys.executable, "-m", "lrft", *words, "--jobs", "2", "--out"]
    process = subprocess.Popen([*command, "killed"], cwd=tmp_path, start_new_session=True)
    arms = tmp_path / "killed" / "arms.jsonl"
    until(lambda: arms.is_file() and len(list((tmp_path / "killed" / "runs").glob("*/run.json"))) > 2, 300)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for out in ("killed", "whole"):
        subprocess.run([*command, out], cwd=tmp_path, check=True, timeout=600)
    told = [
        [{key: line[key] for key in ("arm", "genes", "score")} for line in map(json.loads, file.open())]
        for file in (arms, tmp_path / "whole" / "arms.jsonl")
    ]
    assert told[0] == told[1] and len(told[0]) == 4
