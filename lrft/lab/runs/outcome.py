"""What a run left behind: whether it is finished, its numbers, its costs, and what it ran on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Literal, cast

from lrft.files.json import read_object
from lrft.files.records import Record
from lrft.lab.runs.planned import PlannedRun
from lrft.registry.errors import LrftError
from lrft.registry.json import Json
from lrft.training.checkpoint_folder import step_of, steps_in
from lrft.training.folder import RESULT, RUN, RunFolder
from lrft.training.records import HeldOutRows, SetUp

DIVERGED = "diverged.json"
OF_A_SET_UP: tuple[Literal["versions", "hardware", "git"], ...] = ("versions", "hardware", "git")

Value = float | dict[str, float] | None
"""A number of a run, or one for each of several keys; None where the run diverged."""


class Diverged(Record):
    """What is left of a run without a result: what it said last."""

    message: str


def finished(run: PlannedRun) -> bool:
    """Whether the run has a result, or is known to diverge."""
    complete = (run.folder / RESULT).is_file() and RunFolder(run.folder).adapter.is_dir()
    return complete or (run.folder / DIVERGED).is_file()


def value(run: PlannedRun, metric: str) -> float | None:
    """A number of a finished run; None where it diverged or the number is not finite.

    Args:
        metric: see `measured`.

    Raises:
        LrftError: the run has no such number, or has one for each of several keys.
    """
    found = measured(run, metric)
    if not (found is None or isinstance(found, int | float)):
        raise LrftError(f"{run}: {metric} has a number for each of {len(found)} keys; name one of them")
    return found


def measured(run: PlannedRun, metric: str) -> Value:
    """What a finished run says of a metric: a number, or a number for each key; None where it diverged.

    Args:
        metric: key of metrics.jsonl, of the last step, or of the step in `KEY@STEP`; else dotted key of result.json.

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
    found = _at(record, name)
    if isinstance(found, dict) and all(isinstance(number, int | float) for number in found.values()):
        return found if all(map(math.isfinite, found.values())) else None
    if not isinstance(found, int | float):
        known = ", ".join(key for key, number in record.items() if isinstance(number, int | float))
        raise LrftError(f"{run}: no number {metric}; there is {known or 'no such step'}")
    return float(found) if math.isfinite(found) else None


def result(run: PlannedRun) -> dict[str, Json]:
    """The run's result.json with `adapter_bytes`, `checkpoint_bytes`, `step_seconds`; empty where it diverged."""
    if not (run.folder / RESULT).is_file():
        return {}
    folder = RunFolder(run.folder)
    newest = max(steps_in(folder.checkpoints), key=step_of, default=None)
    sizes = {"adapter_bytes": _size(folder.adapter)}
    sizes |= {"checkpoint_bytes": _size(newest)} if newest is not None else {}
    steps = math.fsum(_seconds(line) for line in _lines(run))
    return {**folder.read(RESULT), **sizes, "step_seconds": steps}


def why_without(run: PlannedRun) -> str | None:
    """What a run said that ended without a result; None where it has one."""
    path = run.folder / DIVERGED
    return str(read_object(path, Diverged)["message"]) if path.is_file() else None


def seconds_a_step(run: PlannedRun) -> float | None:
    """The median over the steps of a finished run; None where it diverged."""
    if (run.folder / DIVERGED).is_file():
        return None
    found = [_seconds(line) for line in _lines(run)]
    return median(found) if found else None


def set_ups_of(runs: Iterable[PlannedRun]) -> list[SetUp]:
    """The different versions and hardware that runs wrote down of themselves; those that never began wrote none."""
    found: list[SetUp] = []
    for run in runs:
        record = RunFolder(run.folder).read(RUN) if (run.folder / RUN).is_file() else {}
        set_up: SetUp = {}
        for key in OF_A_SET_UP:
            if key in record:
                set_up[key] = record[key]
        if set_up and set_up not in found:
            found.append(set_up)
    return found


def share_to_reach(arm: PlannedRun, against: PlannedRun, metric: str) -> float | None:
    """The share of the steps after which the arm's smoothed metric is at or below the other's at its end.

    Smoothed is the exponential mean over a twentieth of the steps, each step weighed so that the first count fully.
    1 over the share that the other needed is the speed-up. Where the arm never comes there the share is 2, beyond any
    criterion. None where a run diverged.

    Raises:
        LrftError: a run has no such number at every step.
    """
    curves = [_smoothed(run, metric) for run in (arm, against)]
    if curves[0] is None or curves[1] is None:
        return None
    target = curves[1][-1]
    return next(((step + 1) / len(curves[0]) for step, value in enumerate(curves[0]) if value <= target), 2.0)


def _smoothed(run: PlannedRun, metric: str) -> list[float] | None:
    if (run.folder / DIVERGED).is_file():
        return None
    values = [line.get(metric) for line in _lines(run)]
    keep = 1 - 1 / max(1.0, len(values) / 20)
    found, mean, weight = [], 0.0, 0.0
    for step, value in enumerate(values):
        if not isinstance(value, int | float):
            raise LrftError(
                f"{run}: step {step + 1} has no number {metric}; reaches_within needs one at every step"
            )
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def held_out_rows(run: PlannedRun) -> tuple[list[float], list[int]] | None:
    """Summed loss and tokens of each held-out row, where the run kept them."""
    rows = cast("HeldOutRows | None", result(run).get("held_out_rows"))
    return None if rows is None else (rows["loss"], rows["tokens"])


def _at(record: Mapping[str, Json], dotted: str) -> Json:
    """The value at a dotted key; keys that hold dots themselves are found whole."""
    if dotted in record:
        return record[dotted]
    head, _, rest = dotted.partition(".")
    below = record.get(head)
    return _at(below, rest) if rest and isinstance(below, dict) else None


def _lines(run: PlannedRun) -> list[dict[str, Json]]:
    return RunFolder(run.folder).metrics()


def _seconds(line: Mapping[str, Json]) -> float:
    seconds = line.get("seconds", 0.0)
    return seconds if isinstance(seconds, int | float) else 0.0


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
