"""The folder to train in: a new one, or one whose run may be gone on with."""

from __future__ import annotations

from pathlib import Path

from lrft.api.resumable import check_known
from lrft.build.job import Job
from lrft.core.notes import say
from lrft.data.pack import ORDER
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import compare
from lrft.recipe.schema import Recipe
from lrft.recipe.scores import LOSS
from lrft.registry.errors import UsageError
from lrft.training import folder as run_folder
from lrft.training.folder import RUN, RunFolder
from lrft.training.relied import own_recipe

# Sections that change where numbers go, not what they are; a resumed run may change them.
FREE_TO_CHANGE = ("logging", "export", "eval")
COMPARED = ("eval.tasks", "eval.limit")  # of those, what scores are taken on


def claim(loaded: LoadedRecipe, out: Path | None, resume: bool, lead: bool, more: bool = False) -> RunFolder:
    """The folder to train in, locked.

    Args:
        more: the recipe has one extension more than the run that it is of.
    """
    path = out
    if path is None and resume:
        path = run_folder.latest(recipe_name=loaded.name)
        if path is None:
            say(f"--resume: no run of {loaded.name} under {run_folder.ROOT}/; starting a new one")
    folder = RunFolder(path or run_folder.new_folder(loaded.name))
    if out is not None and resume and not folder.started:
        say(f"--resume: no run in {out} yet; starting one")
    check_known(folder)
    if folder.started and not resume:
        raise UsageError(
            f"--out {folder.path}: already holds a run; add --resume to continue it or give another folder"
        )
    if lead:
        folder.lock()
    if folder.started:
        _same_recipe(folder, loaded.recipe, more)
    return folder


def check_same_start(job: Job) -> None:
    """Refuse what no recipe shows: other rows in the same file, other base weights.

    Raises:
        UsageError: names what differs.
    """
    before = job.folder.read(RUN)
    now = {
        "data": job.text.fingerprints,
        "base_fingerprint": job.identity.base,
        "packing": job.adaptation.packing,
        "packing_order": ORDER,
    }
    asked = job.run.recipe.train.packing  # older runs, which recorded nothing, packed unless told otherwise
    before = {"packing": asked is not False, "packing_order": "as they come", **before}
    if not job.adaptation.packing:
        before["packing_order"] = ORDER  # no row depends on it
    if job.adaptation.origin is not None:  # read anew, as no step was saved yet
        now["adapter"] = job.adaptation.origin
    said = {
        "adapter": "the adapter of model.adapter",
        "data": "the rows of data.train or data.eval",
        "packing": "whether rows are packed (train.packing)",
        "packing_order": "the order that lrft packs rows in (another version)",
        "base_fingerprint": "the weights of model.name (another base model)",
    }
    for key, value in now.items():
        if before.get(key) != value:
            raise UsageError(
                f"{job.folder.path}: {said[key]} changed since this run began, so it cannot be resumed; put back "
                "what was there, or train in another --out"
            )


def _same_recipe(folder: RunFolder, recipe: Recipe, more: bool) -> None:
    before = own_recipe(folder.path).recipe
    settings = before.train
    compared = settings.patience is not None or settings.metric != LOSS
    kept = COMPARED if compared else ()  # which step is the best, or the last, follows from these
    changes = [c for c in compare(before, recipe) if c[0] in kept or c[0].split(".")[0] not in FREE_TO_CHANGE]
    # What was true by default is now found out, and compared as such with the run's record.
    changes = [c for c in changes if c != ("train.packing", True, None)]
    if more and recipe.train.extended[:-1] == before.train.extended:
        changes = [c for c in changes if c[0] != "train.extended"]
    if changes:
        lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, old, new in changes)
        raise UsageError(
            f"{folder.path}: the recipe changed since this run began, so it cannot be resumed (its own can: lrft train "
            f"{folder.path} --resume):\n{lines}"
        )
