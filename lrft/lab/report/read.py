"""A run folder as a report needs it, whatever state the run is in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lrft.api.training.recorded import finished_as_planned
from lrft.evaluation.report import SAMPLES_SUM as SAMPLES
from lrft.evaluation.report import sum_of_lines
from lrft.files.json import parse_object, read_summed
from lrft.files.read import read_lines
from lrft.files.records import Scores
from lrft.lab.report.metrics import Metrics, read_metrics
from lrft.lab.spectra.inspect import INSPECTIONS
from lrft.lab.spectra.record import FORMAT, Inspection
from lrft.recipe.load import LoadedRecipe
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json
from lrft.training import folder as run_folder
from lrft.training.folder import METRICS, PLAN, RUN, RunFolder
from lrft.training.opened import STEP
from lrft.training.relied import own_recipe

LABELS = ("baseline", "adapter")  # what lrft eval scores, the earlier first


@dataclass(frozen=True)
class State:
    """Whether a run has ended; `sentence` says so."""

    kind: Literal["finished", "running", "stopped"]
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """What `lrft eval` left of one label: its record and its samples."""

    record: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunData:
    """Everything that is told of a run.

    Attributes:
        name: of the folder; with its parents where two runs have the same.
        record: run.json; `plan` plan.json; `result` result.json, None before the end.
        inspection: that of the latest step, None where there is none.
        evaluations: label -> what was scored.
    """

    name: str
    folder: RunFolder
    recipe: LoadedRecipe
    record: Mapping[str, Any]
    plan: Mapping[str, Any]
    metrics: Metrics
    result: Mapping[str, Json] | None
    state: State
    inspection: Inspection | None
    evaluations: Mapping[str, Evaluation]


def find_runs(runs: Sequence[Path | str]) -> list[RunFolder]:
    """The run folders that are meant, by default the latest one, finished or not.

    Raises:
        UsageError: one is no run, or is named twice, or there is none.
    """
    if not runs:
        latest = run_folder.latest()
        if latest is None:
            raise UsageError(f"no run under {run_folder.ROOT}/; train one first or name a run folder")
        return [RunFolder(latest)]
    found: list[RunFolder] = []
    for run in runs:
        folder = run_folder.find(run)
        if not (folder.path / RUN).is_file():
            raise UsageError(
                f"{run} is not a run folder (it holds no {RUN}); give the folder that lrft train wrote"
            )
        if any(folder.path.resolve() == other.path.resolve() for other in found):
            raise UsageError(f"{run} is named twice; name each run once")
        found.append(folder)
    return found


def read_runs(folders: Sequence[RunFolder]) -> list[RunData]:
    """What the folders hold, under names that tell them apart.

    Raises:
        DamagedFile: a file of a run cannot be read.
        RecipeError: its recipe is none.
    """
    names = _names([folder.path for folder in folders])
    return [_read(name, folder) for name, folder in zip(names, folders, strict=True)]


def _read(name: str, folder: RunFolder) -> RunData:
    record = folder.read_whole(RUN)
    folder.check_grown(METRICS)
    metrics = read_metrics(folder.path / METRICS)
    result = finished_as_planned(folder)
    return RunData(
        name,
        folder,
        own_recipe(folder.path),
        record,
        folder.read(PLAN),
        metrics,
        result,
        _state(folder, metrics.step, record.get("total_steps"), result),
        _inspection(folder),
        {label: found for label in LABELS if (found := _evaluation(folder, label)) is not None},
    )


def _names(paths: list[Path]) -> list[str]:
    """The last part of each path, and as many parents as it takes to tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names


def _state(folder: RunFolder, step: int, total: int | None, result: Mapping[str, Json] | None) -> State:
    if result is not None:
        return State("finished", f"finished at step {result.get('step')}")
    where = f"step {step} of {total}" if total else f"step {step}"
    if folder.is_locked:
        return State("running", f"in progress: {where} so far; this page shows what was written until now")
    return State(
        "stopped",
        f"not finished: it stopped after {where}, killed, interrupted or by an error; lrft train --resume goes on "
        "from its last checkpoint",
    )


def _inspection(folder: RunFolder) -> Inspection | None:
    """The inspection of the latest checkpoint that was looked at."""
    files = [file for file in (folder.path / INSPECTIONS).glob("step-*.json") if STEP.fullmatch(file.stem)]
    if not files:
        return None
    latest = max(files, key=lambda file: int(file.stem.removeprefix("step-")))
    found = _json(latest)
    if found.get("format") != FORMAT:
        raise UsageError(f"{latest}: is of another version; inspect the run again, or remove the file")
    return cast(Inspection, found)


def _evaluation(folder: RunFolder, label: str) -> Evaluation | None:
    path = folder.evaluations / f"{label}.json"
    if not os.path.lexists(path):
        return None
    samples = folder.evaluations / f"{label}-samples.jsonl"
    record = _json(path, Scores)
    lines = read_lines(samples) if os.path.lexists(samples) else []
    if record.get(SAMPLES) not in (None, sum_of_lines(lines)):
        raise DamagedFile(
            samples, "is not what lrft wrote: it was edited, or is damaged", "score the run again"
        )
    return Evaluation(record, [parse_object(line.encode(), samples) for line in lines])


def _json(path: Path, kind: object = None) -> dict[str, Any]:
    """A record of an evaluation or an inspection; those of an older lrft have no sum."""
    try:
        return read_summed(path, kind, path.parent)
    except DamagedFile as error:
        raise DamagedFile(path, error.problem, "remove it, or restore it") from None
