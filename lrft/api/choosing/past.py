"""Finished runs beside what their heads predicted: rank correlation, error, and a calibration by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lrft.api.choosing.record import Past, PastRun
from lrft.api.planning.predict import line_through
from lrft.build.text import Text
from lrft.files.json import read_summed
from lrft.files.records import Scores
from lrft.registry.errors import UsageError
from lrft.registry.json import to_section
from lrft.training.checkpoint_folder import step_of, steps_in
from lrft.training.folder import RESULT, RUN, RunFolder

SCORES = ("accuracy", "acc_label", "exact_match")  # shares of right rows, in the order they are looked for
EVALUATION = "eval/adapter.json"
FITTED = 3  # runs that a line takes


def accuracy_of(folder: RunFolder) -> float:
    """The share of held-out rows that a finished run had right.

    Raises:
        UsageError: it is not finished, or was not scored as it is now by a task that counts such.
        DamagedFile: the scores are not what was written.
    """
    if not folder.has(RESULT):
        raise UsageError(
            f"--past {folder.path}: is not finished; lrft train {folder.path} --resume goes on with it"
        )
    path = folder.path / EVALUATION
    found = _scores(folder, path) if path.exists() else {}
    for score in SCORES:
        for metrics in found.values():
            if isinstance(value := metrics.get(score), int | float):
                return float(value)
    raise UsageError(
        f"--past {folder.path}: {EVALUATION} has no share of right rows ({', '.join(SCORES)}); score it with lrft eval "
        "and a task such as exact_match"
    )


def compare(runs: Sequence[PastRun]) -> Past:
    """How predictions of past runs fared, and the line that would have put them right."""
    predicted, seen = [run["predicted"] for run in runs], [run["seen"] for run in runs]
    slope, shift = _line(predicted, seen)
    left = None
    if len(runs) > FITTED:
        left = []
        for k in range(len(runs)):
            b, a = _line([*predicted[:k], *predicted[k + 1 :]], [*seen[:k], *seen[k + 1 :]])
            left.append(a + b * predicted[k] - seen[k])
    return {
        "runs": list(runs),
        "spearman": spearman(predicted, seen),
        "mae": sum(abs(a - b) for a, b in zip(predicted, seen, strict=True)) / len(runs),
        "mae_left_out": None if left is None else sum(map(abs, left)) / len(left),
        "slope": slope,
        "shift": shift,
        "rmse": None if left is None else math.sqrt(sum(one * one for one in left) / len(left)),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of the ranks, equal ones at their mean rank (Spearman, 1904); None where one has no order."""
    x, y = _ranks(a), _ranks(b)
    middle = (len(a) + 1) / 2
    under = math.sqrt(sum((one - middle) ** 2 for one in x) * sum((one - middle) ** 2 for one in y))
    if not under:
        return None
    return sum((p - middle) * (q - middle) for p, q in zip(x, y, strict=True)) / under


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(a < one for a in values) + (1 + sum(a == one for a in values)) / 2 for one in values]


def _line(predicted: Sequence[float], seen: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept; a shift alone where there are few runs, or all have one prediction."""
    if len(predicted) < FITTED or len(set(predicted)) == 1:
        return 1.0, (sum(seen) - sum(predicted)) / len(seen)
    shift, slope, _ = line_through(list(zip(predicted, seen, strict=True)))
    return slope, shift


def check_rows(folder: RunFolder, text: Text) -> None:
    """Refuse a run whose rows are others by now: what a head learns of them says nothing of what it reached.

    Raises:
        UsageError: names the rows.
    """
    before = folder.read(RUN).get("data", {})
    changed = [split for split, found in text.fingerprints.items() if before.get(split, found) != found]
    if changed:
        raise UsageError(
            f"--past {folder.path}: its data.{changed[0]} changed since it was trained; put back what was there, or "
            "leave it out"
        )


def _scores(folder: RunFolder, path: Path) -> dict[str, dict[str, object]]:
    """Task -> metrics of a report of the checkpoint that the run ended with.

    Raises:
        DamagedFile: it is none, or was changed.
        UsageError: it is of an earlier checkpoint.
    """
    found = read_summed(path, Scores, folder.path)
    scored = to_section(found.get("subject")).get("checkpoint")
    last = max(steps_in(folder.checkpoints), key=step_of, default=None)
    if last is not None and scored not in (None, last.name):
        raise UsageError(
            f"--past {folder.path}: was scored at {scored} and ends with {last.name}; score it again with lrft eval"
        )
    return {task: one["metrics"] for task, one in found["tasks"].items()}
