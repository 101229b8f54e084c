"""The rows that a finished run learnt, which its posterior is measured on."""

from __future__ import annotations

from lrft.build.rows import training_rows
from lrft.core.notes import say
from lrft.data.rows import Rows
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError
from lrft.training.folder import METRICS, RUN, RunFolder


def learnt_rows(folder: RunFolder, recipe: Recipe) -> Rows:
    """The rows that the run was trained on; the curvature of others says nothing of it.

    Raises:
        DataError: they are others by now.
    """
    rows = training_rows(recipe)
    if folder.read(RUN)["data"].get("train", rows.fingerprint) != rows.fingerprint:
        raise DataError(
            f"data.train: its rows changed since {folder.path} was trained, and a posterior is of the rows that it was "
            "trained on; put back what was there"
        )
    return rows


def tell_unseen(folder: RunFolder, checkpoint: str) -> None:
    """Say where some of the rows that are measured were never learnt: the factors are no maximum given these."""
    step = int(checkpoint.rpartition("-")[2])
    lines = folder.metrics() if (folder.path / METRICS).is_file() else []
    seen = [line["epoch"] for line in lines if line["step"] <= step and line.get("epoch") is not None]
    if seen and seen[-1] < 1:
        say(
            f"{checkpoint} had gone through {seen[-1]:.0%} of its training rows, and rows that it never learnt are "
            "measured as if it had"
        )
