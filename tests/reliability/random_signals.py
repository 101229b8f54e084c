"""Commands as processes, signalled at random instants from their very start: R3 of the plan.

`run_signals` sends as many signals as it is asked for. A command that is signalled ends soon, with the signal's exit
code, one sentence and nothing half done; the same command is then given again, and ends with the bytes of one that was
left alone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.reliability.struck import files_in, scratch_in
from tests.training.unbroken import same

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SOON = 10.0  # seconds after the signal; a step of the tiny model is shorter
COMMANDS = {
    "train": ["train", "{recipe}", "--out", "out", "--resume"],
    "eval": ["eval", "run"],
    "merge": ["merge", "run", "--out", "out"],
    "export": ["export", "run", "--for", "gguf", "--merged", "--out", "out"],
    "data check": ["data", "check", "{recipe}"],
    "merge q4_0": ["merge", "run", "--out", "out", "--requantize", "q4_0"],
    "combine": ["combine", "run", "run", "--method", "svd", "--out", "out"],
    "sweep": ["sweep", "{recipe}", "adapter.rank=1,2", "eval.at_end=false", "--out", "out"],
    "search": ["search", "{recipe}", "--space", "space.yaml", "--budget", "2", "--out", "out"],
}
RESUMED = ("train", "sweep", "search")
KEPT = (".safetensors", ".gguf", ".yaml")  # of sweeps and searches: tables say how long a run took


@dataclass
class Figures:
    """What came of it.

    Attributes:
        signals: that were sent to a command that was still there; `in_time` of them met one that had started.
        stopped, finished: commands that ended with the signal's exit code, or had done all before it.
        slowest: seconds from a signal to the end of its command.
        identical: commands that ended with the bytes of one that was left alone, once they were given again.
        faults: one line for each thing that is not as it should be.
    """

    signals: int = 0
    stopped: int = 0
    finished: int = 0
    slowest: float = 0.0
    identical: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every signal was answered in time, told, and lost nothing."""
        return self.signals > 0 and not self.faults and self.slowest <= SOON

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """A command as a process, with the handlers that a terminal gives one: a job in the background ignores SIGINT."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lrft", *words],
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_as_from_a_terminal,
    )


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether it has come to lrft, which before has no say; where the system does not tell, after a moment."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.3)
        return True
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return bool(int(lines.get("SigCgt", "0"), 16) >> (signal.SIGTERM - 1) & 1)


def _as_from_a_terminal() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def run_signals(
    recipe: Path, work: Path, count: int, seed: int, told: Callable[[str], object] = print
) -> Figures:
    """Send `count` signals at random instants of commands drawn at random. `work` is emptied.

    Args:
        recipe: trains in seconds, with `eval.at_end` and two tasks.
    """
    draw, figures = random.Random(seed), Figures()
    references = {name: _reference(recipe, work, name) for name in COMMANDS}
    while figures.signals < count:
        name = draw.choice([*COMMANDS, "train"])  # which has the most phases
        seconds = references[name]
        folder = _folder(work, "broken", name)
        process, number = started(_words(name, recipe), folder), draw.choice(SIGNALS)
        while process.poll() is None and not listens(process):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds))
        if process.poll() is not None:
            process.communicate()
            continue
        sent = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate()
        figures.signals += 1
        figures.slowest = max(figures.slowest, time.monotonic() - sent)
        _look(figures, f"{figures.signals}: {name}, {number.name}", process.returncode, number, err, folder)
        _go_on(figures, f"{figures.signals}: {name}", name, recipe, work)
        told(f"{figures.signals} signals, {figures.identical} identical, {len(figures.faults)} faults")
    return figures


def _look(figures: Figures, where: str, code: int, number: int, err: str, folder: Path) -> None:
    """Note how a command that was signalled has ended."""
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    if code == 0 or (
        code == -number and not said
    ):  # in the last moments of the process, which are the system's
        figures.finished += 1
    elif code == 128 + number:
        figures.stopped += 1
    else:
        figures.faults.append(f"{where}: exit code {code}: {err.strip()[-200:]}")
    if "Traceback" in err or len(said) != (code > 0):
        figures.faults.append(f"{where}: said {err.strip()[-300:]!r}")
    if left := scratch_in(folder):
        figures.faults.append(f"{where}: left {', '.join(left)}")


def _go_on(figures: Figures, where: str, name: str, recipe: Path, work: Path) -> None:
    """Give the same command again and compare."""
    folder, whole = work / "broken", work / "whole" / name.replace(" ", "-")
    if (folder / "out").is_dir() and name not in RESUMED:  # it was done before the signal came
        again = 0
    else:
        process = started(_words(name, recipe), folder)
        _, err = process.communicate()
        again = process.returncode
    try:
        assert again == 0, f"given again it ended with {again}: {err.strip()[-200:]}"
        if name == "train":
            same(folder / "out", whole / "out")
        found, expected = (_results(path, name) for path in (folder, whole))
        assert found == expected, (
            f"differs: {[k for k in found | expected if found.get(k) != expected.get(k)]}"
        )
        figures.identical += 1
    except AssertionError as error:
        figures.faults.append(f"{where}: {str(error).splitlines()[0][:300]}")


def _results(folder: Path, name: str) -> dict[str, bytes]:
    """What a command has written and has to write alike each time."""
    if name == "train":
        return files_in(folder / "out" / "eval")
    left = files_in(folder / "out") if (folder / "out").exists() else {}
    if name in ("sweep", "search"):
        left = {
            path: content for path, content in left.items() if path.endswith(KEPT) and "/run.json" not in path
        }
    return {**files_in(folder / "run" / "eval"), **left}


def _reference(recipe: Path, work: Path, name: str) -> float:
    """Do a command once without a signal; how many seconds it took."""
    folder = _folder(work, f"whole/{name.replace(' ', '-')}", name)
    began = time.monotonic()
    process = started(_words(name, recipe), folder)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return time.monotonic() - began


def _folder(work: Path, kind: str, name: str) -> Path:
    """A new folder, with a finished run in it where the command takes one."""
    folder = work / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text("adapter.rank: [1, 2]\n")
    if "run" in COMMANDS[name]:
        shutil.copytree(work / "whole" / "train" / "out", folder / "run")
    return folder


def _words(name: str, recipe: Path) -> list[str]:
    return [word.format(recipe=recipe) for word in COMMANDS[name]]
