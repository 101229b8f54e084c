"""Arms, learning rates and seeds, as a list of runs that each have a folder of their own."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import iglob
from pathlib import Path

from lrft.lab.runs.digest import code_digest
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import flat, recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json
from lrft.training.folder import LONGEST_NAME

TUNING_SEED = 1000  # of the runs that choose a rate; never the seed of a verdict
AT_THE_END = 1_000_000_000  # eval_every beyond every run: the last step is scored all the same
UNSCORED = (
    "eval.at_end=false"  # beside what arms are judged by, nothing is scored unless the recipe asks for it
)
WHOLE = 16 * 2**20  # bytes up to which a file is hashed whole
SLICES = 16


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        source: recipe file or packaged name.
        overrides: of this arm, those of all arms first.
        recipe: the recipe they give, before a rate and a seed are put in.
        group: arms of one group are tuned together and share a rate.
    """

    label: str
    source: str
    overrides: tuple[str, ...]
    recipe: Recipe
    group: str

    def changed(self, *overrides: str) -> Arm:
        """The arm with more overrides.

        Raises:
            RecipeError: the recipe is not valid with them.
        """
        together = (*self.overrides, *overrides)
        return replace(self, overrides=together, recipe=load_recipe(self.source, together).recipe)


@dataclass(frozen=True)
class PlannedRun:
    """One training: an arm at a rate and a seed, and the folder that is its own.

    Attributes:
        trusted: whether code that comes with the base model may run.
    """

    arm: str
    rate: float
    seed: int
    recipe: Recipe
    folder: Path
    trusted: bool = False

    def __str__(self) -> str:
        return f"{self.arm}, rate {self.rate:g}, seed {self.seed}"


def make_arm(label: str, source: str | Path, overrides: Sequence[str] = (), group: str | None = None) -> Arm:
    """An arm from a recipe, scored at its last step if not more often.

    Raises:
        RecipeError: the recipe is not valid, or has no held-out rows.
    """
    loaded = load_recipe(source, overrides)
    arm = Arm(label, str(source), tuple(overrides), loaded.recipe, group or label)
    if not loaded.recipe.data.holds_out:
        message = f"{label} has no held-out rows, and arms are judged by them; add data.eval=FILE, or data.split=SHARE"
        raise RecipeError(message, "data.eval")
    if loaded.recipe.train.eval_every is None:
        arm = arm.changed(f"train.eval_every={loaded.recipe.train.max_steps or AT_THE_END}")
    return arm.changed(UNSCORED) if loaded.recipe.eval.at_end is None else arm


def plan_run(arm: Arm, rate: float, seed: int, out: Path, trusted: bool = False) -> PlannedRun:
    """The run of an arm at a rate and a seed. Its folder is named by all that decides its numbers."""
    recipe = arm.changed(f"optimizer.lr={rate!r}", f"train.seed={seed}").recipe
    decisive = [recipe_hash(recipe), code_digest(recipe), *map(fingerprint, _local_paths(recipe))]
    decisive += ["its own code"] if trusted else []
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", arm.label).strip("-.")[:LONGEST_NAME] or "arm"
    folder = out / "runs" / f"{slug}-lr{rate:g}-seed{seed}-{digest[:12]}"
    return PlannedRun(arm.label, rate, seed, recipe, folder, trusted)


def fingerprint(path: str) -> str:
    """A digest of a file, or of every file of a folder. Of files above 16 MiB, size and sixteen slices count."""
    names = [path]
    if os.path.isdir(path):
        names = sorted(os.path.join(at, name) for at, _, files in os.walk(path) for name in files)
    digest = hashlib.sha256()
    for name in names:
        status = os.stat(name)
        digest.update(f"{os.path.relpath(name, path)} {_file_digest(name, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(name: str, mtime_ns: int) -> str:
    """Read once a process and state of the file: every run of a comparison has the same files."""
    size = os.path.getsize(name)
    digest = hashlib.sha256(str(size).encode())
    with open(name, "rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for index in range(SLICES):
                file.seek((size - 2**20) * index // (SLICES - 1))
                digest.update(file.read(2**20))
    return digest.hexdigest()


def _local_paths(recipe: Recipe) -> Iterator[str]:
    """Files and folders that the recipe names: model, rows, adapters. Loading made them absolute."""
    for value in flat(recipe).values():
        yield from _paths_in(value)


def _paths_in(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        if os.path.isabs(value):
            yield from [value] if os.path.exists(value) else sorted(iglob(value, recursive=True))
    elif isinstance(value, Mapping | Sequence):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _paths_in(one)
