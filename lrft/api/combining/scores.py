"""A combination scored beside its parents and the base, and the line between two models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lrft.api.combining.parents import Parent
from lrft.build.job import subject
from lrft.core import stop
from lrft.core.adapted import adapted, adapters_off
from lrft.core.combine import Part, together
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.run import evaluate_tasks, metrics_of
from lrft.export.fidelity import CHUNK
from lrft.export.pairs import Pair
from lrft.export.served import Served, with_pairs
from lrft.files.write import fresh_file, write_in
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from lrft.api.combining.folder import Made
    from lrft.core.batch import Batch
    from lrft.export.fidelity import Comparable

TABLE, PICTURE = "curve.csv", "curve.png"
BASE, RESULT = "base", "combined"


def check_curve(points: int, parents: int) -> None:
    """Refuse, before anything is loaded, a curve that cannot be drawn.

    Raises:
        UsageError: it has no line, or no points between its ends.
        MissingExtra: matplotlib is not installed.
    """
    if not points:
        return
    if points < 2 or parents > 2:
        what = f"{points} point has no line" if points < 2 else f"{parents} adapters lie on no line"
        raise UsageError(f"--curve: {what}; give two points or more, and one adapter or two")
    try:
        import matplotlib.figure  # noqa: F401 (said now, and not after the combination)
    except ImportError:
        raise MissingExtra(
            "--curve: pictures are drawn by matplotlib; install it with `pip install 'lrft[plot]'`, or leave it out"
        ) from None


def score_all(
    made: Made, parents: Sequence[Parent], limit: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Label -> task -> metrics of the base, every parent and the result, on the same rows and the same base."""
    recipe, model = made.recipe, made.adaptation.model
    if not recipe.eval.tasks and not recipe.data.holds_out:
        raise UsageError(
            "--eval: the recipe names no task and no data.eval; add one to it, or leave --eval out"
        )
    tasks = list(recipe.eval.tasks) or [parse_choice(TASKS, "loss")]
    found: dict[str, dict[str, dict[str, float]]] = {}
    with EvaluationBar() as show:
        target = subject(recipe, made.text, model, show)
        rows = limit or recipe.eval.limit
        for label, pairs in [(BASE, {}), *((one.name, pairs_of(one.parts)) for one in parents)]:
            with _standing_in(made, pairs):
                found[label] = metrics_of(evaluate_tasks(target, tasks, rows, None, label))
        found[RESULT] = metrics_of(evaluate_tasks(target, tasks, rows, None, RESULT))
    return found


def draw_curve(made: Made, place: Path, parents: Sequence[Parent], points: int) -> list[dict[str, float]]:
    """The loss at so many places from the base, or the first parent, to the last, as a table and a picture."""
    batches, rows_from = made.batches()
    if not batches:
        raise UsageError("--curve: the recipe has no rows that could be scored; leave it out")
    found = []
    for number in range(points):
        stop.poll()
        alpha = number / (points - 1)
        weights = [alpha] if len(parents) == 1 else [1 - alpha, alpha]
        pairs = {}
        for name in dict.fromkeys(name for parent in parents for name in parent.parts):
            there = [
                (w, parent.parts[name])
                for w, parent in zip(weights, parents, strict=True)
                if name in parent.parts
            ]
            pairs[name] = Pair(*together([part for _, part in there], [weight for weight, _ in there]))
        found.append({"alpha": alpha, "loss": mean_loss(Served(made.adaptation.model, pairs), batches)})
    ends = [BASE, parents[0].name] if len(parents) == 1 else [one.name for one in parents]
    _write(place, found, ends, str(rows_from))
    return found


def pairs_of(parts: Mapping[str, Part]) -> dict[str, Pair]:
    """Layer -> its change as a pair; of a dense one with an identity for B."""
    return {
        name: Pair(part.A, part.B, part.scale)
        if part.dense is None
        else Pair(part.dense, torch.eye(part.dense.shape[0]))
        for name, part in parts.items()
    }


@torch.no_grad()
def mean_loss(model: Comparable, batches: Sequence[Batch]) -> float:
    """Nats per supervised token."""
    total, count = 0.0, 0
    for batch in batches:
        on = batch.to(model.device)
        rows, targets = model.hidden(on).flatten(0, 1).index_select(0, on.supervised), on.targets
        for start in range(0, len(rows), CHUNK):
            logits = model.head.logits(rows[start : start + CHUNK]).float()
            chunk = targets[start : start + CHUNK]
            total += float(torch.nn.functional.cross_entropy(logits, chunk, reduction="sum"))
        count += len(rows)
    return total / max(count, 1)


@contextmanager
def _standing_in(made: Made, pairs: Mapping[str, Pair]) -> Iterator[None]:
    """Let the model compute with these changes where its own are."""
    model = made.adaptation.model
    with adapters_off(model), with_pairs(adapted(model.hf), pairs, model.device):
        yield


def _write(place: Path, found: Sequence[Mapping[str, float]], ends: Sequence[str], rows_from: str) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, ["alpha", "loss"], lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    write_in(place / TABLE, text.getvalue())
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([one["alpha"] for one in found], [one["loss"] for one in found], marker="o", markersize=3)
    axes.set(xlabel=f"alpha, from {ends[0]} to {ends[-1]}", ylabel=f"loss on {rows_from}, nats per token")
    with fresh_file(place / PICTURE, "--curve") as path:
        figure.savefig(path, format="png")
