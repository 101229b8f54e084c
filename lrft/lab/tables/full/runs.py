"""The runs of a full table: trained and scored as processes, a finished one kept, their scores read back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrft.core.notes import say
from lrft.files.json import read_summed
from lrft.files.records import Scores
from lrft.lab.runs.executor import Executor, Handle, Work
from lrft.lab.runs.local import Progress, run_all, trusting, work_through
from lrft.lab.runs.outcome import DIVERGED
from lrft.lab.runs.planned import PlannedRun, plan_run
from lrft.lab.runs.processes import Processes
from lrft.lab.tables.full.table import FullRow, FullTable, trained_arm
from lrft.registry.errors import LrftError
from lrft.training.folder import RunFolder

SCORES = "adapter.json"


@dataclass
class Runs:
    """What the runs of a row gave.

    Attributes:
        runs: one a seed; empty where the row was not run.
        values: metric -> one value a seed, None where it diverged or is not finite.
        scored: metric -> rows it was scored on.
    """

    runs: list[PlannedRun] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    scored: dict[str, int] = field(default_factory=dict)


def planned(
    table: FullTable,
    row: FullRow,
    path: Path,
    out: Path,
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    trusted: bool = False,
) -> list[PlannedRun]:
    """The runs of a row; none where it has no recipe, or nothing to be compared with."""
    arm = trained_arm(table, row, path, overrides)
    if arm is None or not any(table.columns[name].metrics for name in row.cells):
        return []
    arm = replace(
        arm, label=Path(arm.source).stem
    )  # folders by recipe: equal rows have equal runs, made once
    of = [arm.recipe.train.seed] if seeds is None else seeds
    runs = [plan_run(arm, arm.recipe.optimizer.lr, seed, out, trusted) for seed in of]
    return [replace(run, arm=row.label) for run in runs]


def finish(runs: Sequence[PlannedRun], jobs: int, cluster: Executor | None = None) -> None:
    """Train and score, `jobs` trainings at a time, so that what is trained is scored before the next begin.

    Args:
        cluster: where both are done; by default here, where one run at a time is scored on all cores.
    """
    runs = list({run.folder: run for run in reversed(runs)}.values())[::-1]
    progress = Progress(len(runs), jobs)
    for start in range(0, len(runs), jobs):
        batch = runs[start : start + jobs]
        run_all(batch, jobs, progress, cluster)
        due = [run for run in batch if not _scores(run).is_file() and not (run.folder / DIVERGED).is_file()]
        _score(due, jobs if cluster else 1, cluster or Processes(1))


def read(found: Runs, table: FullTable, row: FullRow) -> None:
    """Read the numbers that the row's columns ask for.

    Raises:
        LrftError: a run was not scored by a task that a column names.
    """
    wanted = dict.fromkeys(metric for name in row.cells for metric in table.columns[name].metrics)
    for run in found.runs:
        diverged = (run.folder / DIVERGED).is_file()
        tasks = {} if diverged else read_summed(_scores(run), Scores)["tasks"]
        known = {f"{task}.{key}": value for task in tasks for key, value in tasks[task]["metrics"].items()}
        for metric in wanted:
            if metric not in known and not diverged:
                raise LrftError(f"{run}: no score {metric}; there is {', '.join(known) or 'none'}")
            found.values.setdefault(metric, []).append(known.get(metric))
            found.scored[metric] = 0 if diverged else tasks[metric.partition(".")[0]]["n"]


def evaluation_command(folder: Path) -> list[str]:
    """What scores a finished run."""
    return [sys.executable, "-m", "lrft", "eval", str(folder)]


def _score(runs: Sequence[PlannedRun], jobs: int, executor: Executor) -> None:
    """`lrft eval` of every run.

    Raises:
        LrftError: one failed; it has the exit code of that process.
        Interrupted: asked to stop; of what was not scored nothing was written.
    """

    def kept() -> str:
        return f"stopped while scoring {', '.join(map(str, runs))}; the same command goes on"

    work_through([_scoring(run) for run in runs], jobs, executor, _close, kept)


def _scoring(run: PlannedRun) -> Work:
    def prepare() -> list[str]:
        say(f"{run}: scoring")
        return trusting(run, evaluation_command(run.folder.absolute()))

    return Work(run, f"{run.folder.name}-eval", prepare)


def _close(handle: Handle) -> None:
    """Refuse a scoring that ended without scores."""
    run, code, log = handle.work.run, handle.exit_code, handle.work.log
    if code == 0 and _scores(run).is_file():
        return
    error = LrftError(
        f"{run}: scoring ended with exit code {code}: {handle.last_line()} (all it said is in {log}); the same "
        "command goes on from here"
    )
    error.exit_code = code if 0 < code < 128 else 1
    raise error


def _scores(run: PlannedRun) -> Path:
    return RunFolder(run.folder).evaluations / SCORES
