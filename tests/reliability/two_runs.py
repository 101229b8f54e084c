"""R14: a second training in a folder is refused while the first is there, and a lock left behind keeps nobody out."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from lrft.api.training.train import train
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder
from tests.reliability.outcome import Outcome, tiny

HOLD = "import sys, time; from pathlib import Path; from lrft.training.folder import RunFolder; "
HOLD += "run = RunFolder(Path(sys.argv[1])); run.lock(); print('held', flush=True); time.sleep(600)"


def check(n: int, seed: int) -> Outcome:
    """Another process holds the folder and is then killed; by turns of a new folder and of one with a run."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = tiny(folder, [f"train.seed={seed}", "train.max_steps=2"])
        for index in range(n):
            run = folder / f"run-{index // 2}"
            before = _bytes(run)
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True
            )
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            fault = _refused(recipe, run, resume=bool(index % 2))
            if _bytes(run) != before:
                fault += " files of the other run were touched"
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            holder.stdout.close()
            if RunFolder(run).is_locked:
                fault += " the lock of a killed process still holds"
            elif index % 2 == 0 and not fault:
                train(recipe, run)
            outcome.add(not fault, f"turn {index} of seed {seed}: {fault}")
    return outcome


def _refused(recipe: object, run: Path, resume: bool) -> str:
    try:
        train(recipe, run, resume=resume)  # type: ignore[arg-type]
    except UsageError as error:
        return (
            "" if "another process is training here" in str(error) else f"refused for another reason: {error}"
        )
    return "a second run began"


def _bytes(run: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"
    }
