"""R10: names and links that lead elsewhere; nothing outside of the folder that was named is made or changed."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from pathlib import Path

from lrft.api.training.train import train
from lrft.registry.errors import LrftError
from lrft.training.folder import find, new_folder
from tests.reliability.full_disk import call
from tests.reliability.outcome import Outcome, tiny

PARTS = (
    "..",
    ".",
    "",
    "~",
    "a",
    "CON",
    "nul.txt",
    "é",
    "a\0b",
    " ",
    "\n",
    "-x",
    "$HOME",
    "%2e%2e",
    "n" * 300,
    "/",
)
LINKED = (
    "adapter",
    "checkpoints",
    "metrics.jsonl",
    "run.json",
    "recipe.yaml",
    "plan.json",
    "result.json",
    ".lock",
)
NEW = (
    "eval",
    "inspect",
    ".run.json.tmp",
    ".adapter.tmp",
    ".adapter.old",
    "checkpoints/.step-2.tmp",
    "eval.json",
)
WRITERS = (
    ("eval", "run"),
    ("inspect", "run"),
    ("merge", "run", "--out", "out"),
    ("train", "run", "--resume", "--more-steps", "1"),
)
LINKS = 5  # a fifth of the turns plant a link, the others try a name


def check(n: int, seed: int) -> Outcome:
    """n turns in a folder that lies in another one, of which every file is looked at afterwards."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        recipe = tiny(folder, ["train.max_steps=1", "train.save_every=1"])
        train(recipe, folder / "whole")
        for index in range(n):
            draw = random.Random(seed * 1_000_003 + index)
            place = folder / f"outer-{index}"
            (place / "inside").mkdir(parents=True)
            (place / "precious").write_text("precious")
            told, fault = (_link if index % LINKS == 0 else _name)(draw, folder, place)
            outcome.add(not fault, f"{told!r}, turn {index} of seed {seed}: {fault}")
            shutil.rmtree(place)
    return outcome


def _name(draw: random.Random, folder: Path, place: Path) -> tuple[str, str]:
    """A name that a recipe, or somebody who looks for a run, may have given."""
    name = "/".join(draw.choice(PARTS) for _ in range(draw.randint(1, 4)))
    runs = place / "inside" / "runs"
    made = new_folder(name, runs)
    if made.parent != runs or made.resolve().parent != runs or len(made.name.encode()) > 255:
        return name, f"a run would be {made}"
    made.mkdir(parents=True)
    try:
        found = find(name, runs).path
    except LrftError:
        return name, ""
    except Exception as error:  # what the check is about
        return name, f"{type(error).__name__}: {error}"
    return name, "" if found == Path(name) or found.is_relative_to(runs) else f"found {found}"


def _link(draw: random.Random, folder: Path, place: Path) -> tuple[str, str]:
    """Something of a run folder that is a link out of it, and a command that writes there."""
    run, outside = place / "inside" / "run", place / "outside"
    shutil.copytree(folder / "whole", run)
    name, words = draw.choice((*LINKED, *NEW)), draw.choice(WRITERS)
    entry = run / name
    if entry.exists():
        shutil.move(entry, outside)
    elif draw.random() < 0.5:
        outside.mkdir()
        (outside / "file").write_text("precious")
    else:
        outside.write_text("precious")
    entry.symlink_to(outside)
    before = _held(place, run)
    ended = call(place / "inside", words)
    told = f"{name} at {' '.join(words)}"
    if _held(place, run) != before:
        return told, "something outside is not as it was"
    if ended.raised or ended.code not in (1, 2, 3) or "Traceback" in ended.err:
        return told, f"ended in {ended}"
    return told, ""


def _held(place: Path, run: Path) -> dict[str, str]:
    """Path -> content of everything that is not the run folder's own; links are not followed."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and not path.is_relative_to(run):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_relative_to(run):
            found[str(path)] = ""
    return found
