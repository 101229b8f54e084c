"""The line between two models, or from the base to one: its losses as a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from lrft.api.combining.parents import Parent
from lrft.api.combining.scores import BASE
from lrft.core import stop
from lrft.core.combine import together
from lrft.export.fidelity import CHUNK
from lrft.export.pairs import Pair
from lrft.export.served import Served
from lrft.files.write import fresh_file, write_in
from lrft.registry.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from lrft.api.combining.folder import Made
    from lrft.core.batch import Batch
    from lrft.export.fidelity import Comparable

TABLE, PICTURE = "curve.csv", "curve.png"


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


@torch.no_grad()
def mean_loss(model: Comparable, batches: Sequence[Batch]) -> float:
    """Nats per supervised token."""
    total, count = 0.0, 0
    for batch in batches:
        on = batch.to(model.device)
        rows, targets = on.supervised_rows(model.hidden(on)), on.targets
        for start in range(0, len(rows), CHUNK):
            logits = model.head.logits(rows[start : start + CHUNK]).float()
            chunk = targets[start : start + CHUNK]
            total += float(F.cross_entropy(logits, chunk, reduction="sum"))
        count += len(rows)
    return total / max(count, 1)


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
