"""A sweep from start to report: every point trained once, in order of its score in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from lrft.core import stop
from lrft.core.notes import say
from lrft.files.fresh_folder import remove_folder
from lrft.files.made_records import SweepRecord
from lrft.lab.models import Models
from lrft.lab.runs.executor import Executor
from lrft.lab.runs.judged import Metric
from lrft.lab.runs.local import Progress, run_all
from lrft.lab.runs.outcome import result, value
from lrft.lab.runs.planned import PlannedRun, plan_run
from lrft.lab.runs.report import check_report
from lrft.lab.sweep.points import Point, metric_of, points_of

STEM = "sweep"  # of the report's files
Kept = Literal["adapter", "checkpoints"]


class Row(TypedDict):
    """One point: what was set, what it costs, and what it gave.

    Attributes:
        score: None where the run diverged.
        losses: of the last step, in training and held out, None where there is none.
        run: its folder, seen from the folder of the sweep.
    """

    label: str
    values: dict[str, str]
    score: float | None
    loss: float | None
    eval_loss: float | None
    trainable: int
    seconds: float | None
    run: str


class Sweep(TypedDict):
    """A whole sweep; `rows` begin with the best."""

    command: str
    recipe: str
    metric: str
    higher: bool
    keys: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Settings:
    """What a sweep is made with.

    Attributes:
        out: folder of runs and report.
        metric: see `points_of`.
        jobs: runs at a time.
        kept: of a finished run, its adapter alone or its checkpoints too.
        cluster: where runs are made; None for processes of this machine.
        trust_remote_code: let code run that comes with the base model.
    """

    out: Path
    metric: str = "eval_loss"
    jobs: int = 1
    kept: Kept = "adapter"
    cluster: Executor | None = None
    trust_remote_code: bool = False


def sweep(
    recipe: str, arguments: Sequence[str], settings: Settings, arms: Path | None = None, command: str = ""
) -> Sweep:
    """Train every point; what is finished in the settings' `out` is not run again.

    Raises:
        UsageError: see `points_of`; or somebody else's files have the names of the report.
        LrftError, Interrupted: see `lrft.lab.runs.local.run_all`.
    """
    with stop.listening(f"what is finished in {settings.out} is kept; the same command goes on"):
        return _sweep(recipe, arguments, settings, arms, command)


def _sweep(
    recipe: str, arguments: Sequence[str], settings: Settings, arms: Path | None, command: str
) -> Sweep:
    check_report(settings.out, STEM, SweepRecord, "a sweep")
    points = points_of(recipe, arguments, arms, settings.metric)
    metric = metric_of(points, settings.metric)
    out, trusted = settings.out, settings.trust_remote_code
    models = Models(trusted)
    sizes = [models.weigh(point.arm.recipe)["trainable"] for point in points]
    for point, size in zip(points, sizes, strict=True):
        say(f"{point.arm.label}: {size:,} trainable")
    runs = [
        plan_run(point.arm, point.arm.recipe.optimizer.lr, point.arm.recipe.train.seed, out, trusted)
        for point in points
    ]
    pruned = _without_checkpoints if settings.kept == "adapter" else None
    progress = Progress(len(runs), settings.jobs)
    run_all(runs, settings.jobs, progress, settings.cluster, after=pruned)
    rows = [_row(point, run, size, metric, out) for point, run, size in zip(points, runs, sizes, strict=True)]
    return {
        "command": command,
        "recipe": recipe,
        "metric": metric.name,
        "higher": metric.higher,
        "keys": list(points[0].values),
        "rows": sorted(rows, key=lambda row: _place(row["score"], metric)),
    }


def _without_checkpoints(run: PlannedRun) -> None:
    remove_folder(run.folder / "checkpoints")


def _place(score: float | None, metric: Metric) -> float:
    """Ascending, the best first and what diverged last."""
    if score is None:
        return math.inf
    return -score if metric.higher else score


def _row(point: Point, run: PlannedRun, trainable: int, metric: Metric, out: Path) -> Row:
    found = result(run)
    seconds = found.get("seconds")

    def last(key: str) -> float | None:
        return value(run, key) if found else None

    return {
        "label": point.arm.label,
        "values": point.values,
        "score": last(metric.name),
        "loss": last("loss"),
        "eval_loss": last("eval_loss") if point.arm.recipe.data.holds_out else None,
        "trainable": trainable,
        "seconds": float(seconds) if isinstance(seconds, int | float) else None,
        "run": str(run.folder.relative_to(out)),
    }
