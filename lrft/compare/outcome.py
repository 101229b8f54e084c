"""What a run left behind: whether it is finished, its numbers, its costs, and what it ran on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lrft.compare.plan import PlannedRun
from lrft.core.errors import LrftError
from lrft.train.folder import METRICS, RESULT, RUN, RunFolder

DIVERGED = "diverged.json"


def finished(run: PlannedRun) -> bool:
    """Whether the run has a result, or is known to diverge."""
    complete = (run.folder / RESULT).is_file() and RunFolder(run.folder).adapter.is_dir()
    return complete or (run.folder / DIVERGED).is_file()


def value(run: PlannedRun, metric: str) -> float | None:
    """A number of a finished run; None where it diverged or the number is not finite.

    Args:
        metric: key of metrics.jsonl, of the last step, or of the step in `KEY@STEP`; else key of result.json.

    Raises:
        LrftError: the run has no such number.
    """
    if (run.folder / DIVERGED).is_file():
        return None
    name, _, step = metric.partition("@")
    lines = _lines(run)
    if step:
        lines = [line for line in lines if str(line["step"]) == step]
    record = lines[-1] if lines else {}
    if name not in record and not step:
        record = result(run)
    found = record.get(name)
    if not isinstance(found, int | float):
        known = ", ".join(key for key, number in record.items() if isinstance(number, int | float))
        raise LrftError(f"{run}: no number {metric}; there is {known or 'no such step'}")
    return float(found) if math.isfinite(found) else None


def result(run: PlannedRun) -> dict[str, Any]:
    """The run's result.json with `adapter_bytes`, `checkpoint_bytes`, `step_seconds`; empty where it diverged."""
    if not (run.folder / RESULT).is_file():
        return {}
    folder = RunFolder(run.folder)
    whole = [path.parent for path in folder.checkpoints.glob("step-*/manifest.json")]
    newest = max(whole, key=lambda path: int(path.name.removeprefix("step-")), default=None)
    sizes = {"adapter_bytes": _size(folder.adapter)}
    sizes |= {"checkpoint_bytes": _size(newest)} if newest is not None else {}
    steps = math.fsum(line.get("seconds", 0.0) for line in _lines(run))
    return {**folder.read(RESULT), **sizes, "step_seconds": steps}


def environment(run: PlannedRun) -> dict[str, Any]:
    """Versions and hardware that the run itself wrote down; empty where it never began."""
    record = RunFolder(run.folder).read(RUN) if (run.folder / RUN).is_file() else {}
    return {key: record[key] for key in ("versions", "hardware", "git") if key in record}


def _lines(run: PlannedRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
