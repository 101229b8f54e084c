"""R4: a run that is cut off after any step and gone on with ends in the bytes of the run that was not."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lrft.api.training.train import train
from lrft.recipe.load import LoadedRecipe
from tests.reliability.outcome import Outcome, tiny
from tests.training.unbroken import cut_off, files_of, losses

STEPS = 20
BASES = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "nf4": ("bfloat16", "nf4"),
}
CELLS = list(itertools.product(BASES, ("lora", "dora"), (True, False), (1, 4), (1, 2)))


def check(n: int, seed: int) -> Outcome:
    """n pairs of a cell and a step, drawn; as many as a cell has steps are those of one, the `seed`-th in turn."""
    every = list(itertools.product(range(len(CELLS)), range(1, STEPS)))
    first = seed % len(CELLS) * n
    pairs = every[first : first + n] if n == STEPS - 1 else random.Random(seed).sample(every, n)
    outcome = Outcome()
    for cell, group in itertools.groupby(sorted(pairs), key=lambda pair: pair[0]):
        with tempfile.TemporaryDirectory() as name, threads(CELLS[cell][4]):
            folder = Path(name)
            recipe = recipe_of(folder, cell)
            train(recipe, folder / "whole")
            for _, step in group:
                broken = cut_off(folder / "whole", step, folder / f"broken-{step}-{outcome.tried}")
                train(recipe, broken, resume=True)
                same = files_of(broken) == files_of(folder / "whole") and losses(broken) == losses(
                    folder / "whole"
                )
                outcome.add(same, f"{CELLS[cell]}: other bytes after a resume at step {step}")
    return outcome


def recipe_of(folder: Path, cell: int) -> LoadedRecipe:
    """The recipe of one cell of the matrix, with a checkpoint after every step."""
    base, method, packing, accumulation, _ = CELLS[cell]
    dtype, storage = BASES[base]
    overrides = [
        f"adapter.method={method}",
        f"quantization={storage}",
        f"train.packing={str(packing).lower()}",
        f"train.gradient_accumulation={accumulation}",
        f"train.max_steps={STEPS}",
        "train.save_every=1",
        f"train.keep_last={STEPS}",
    ]
    return tiny(folder, overrides, dtype)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
