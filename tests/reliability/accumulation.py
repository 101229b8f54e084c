"""R16: one step of sixteen rows has the same gradients however the rows are cut into micro-batches."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.job import Job, assemble
from lrft.data.encoded import Encoded
from lrft.data.steps import TrainData
from lrft.recipe.resolved import recipe_hash
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.step import step_loss
from tests.reliability.outcome import Outcome, tiny

ROWS = 16
CUTS = ((1, 16), (2, 8), (4, 4), (16, 1))  # micro-batches, and rows of each
CLOSE = 1e-6


def check(n: int, seed: int) -> Outcome:
    """Random batches of rows with uneven numbers of targets, padded and joined, in float32."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        job = small_job(Path(folder))
    for index in range(n):
        draw = random.Random(seed * 1_000_003 + index)
        rows = [uneven(row, draw) for row in draw.sample(job.text.train, ROWS)]
        join = bool(index % 2)
        first = gradients(job, rows, *CUTS[0], join)
        worst = max(distance(first, gradients(job, rows, *cut, join)) for cut in CUTS[1:])
        outcome.facts["worst"] = max(outcome.facts.get("worst", 0.0), worst)
        outcome.add(worst <= CLOSE, f"batch {index} of seed {seed}: relative distance {worst:.2e}")
    return outcome


def small_job(folder: Path) -> Job:
    """A job on the tiny model in float32 whose adapter is no longer at its start."""
    loaded = tiny(folder, ["adapter.dropout=0", "train.packing=false"], "float32")
    recipe = loaded.recipe
    accelerator = make_accelerator("cpu", "float32")
    text, adaptation = read_text(recipe), adapt(recipe)
    job = assemble(recipe, RunFolder(folder / "run"), text, adaptation, accelerator, recipe_hash(recipe))
    torch.manual_seed(5)
    with torch.no_grad():
        for info in job.run.parameters:
            info.param.add_(0.05 * torch.randn_like(info.param))
    return job


def uneven(row: Encoded, draw: random.Random) -> Encoded:
    """The row with only some of its targets, one at the least."""
    targets = [place for place, learnt in enumerate(row.supervised) if learnt]
    kept = set(draw.sample(targets, draw.randint(1, len(targets))))
    return replace(row, supervised=[place in kept for place in range(len(row.supervised))])


def gradients(job: Job, rows: Sequence[Encoded], micro_batches: int, size: int, join: bool) -> list[Tensor]:
    """Those of one step over all rows."""
    data = TrainData(
        rows,
        batch_size=size,
        accumulation=micro_batches,
        max_length=160,
        packing=False,
        join=join,
        seed=0,
        pad_id=job.text.pad_id,
    )
    for info in job.run.parameters:
        info.param.grad = None
    step_loss(job.run, data.at(0), job.objective)
    return [info.param.grad for info in job.run.parameters if info.param.grad is not None]


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """|a - b| / |a| over all gradients together."""
    pairs = list(zip(first, second, strict=True))
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float(a.double().square().sum()) for a in first)
    return float((apart / size) ** 0.5)
