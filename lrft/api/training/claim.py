"""The folder to train in: a new one, or one whose run may be gone on with."""

from __future__ import annotations

from pathlib import Path

from lrft.api.training.resumable import check_known
from lrft.core.notes import say
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import FREE_SECTIONS, compare
from lrft.recipe.schema import Recipe
from lrft.recipe.scores import LOSS
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training import folder as run_folder
from lrft.training.folder import RunFolder
from lrft.training.relied import own_recipe

# Beside FREE_SECTIONS, what changes where numbers go, not what they are; a resumed run may change it.
FREE_KEYS = tuple(f"train.{key}" for key in ("save_every", "keep_last", "shard_base"))
AROUND = 40  # characters of a long text that are shown where it changed


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
    try:
        if folder.started:
            _same_recipe(folder, loaded.recipe, more)
    except BaseException:
        folder.unlock()
        raise
    return folder


def is_free(key: str) -> bool:
    """Whether a resumed run may have another value of a key of the recipe."""
    return key in FREE_KEYS or key.partition(".")[0] in FREE_SECTIONS


def _scored_on(recipe: Recipe) -> tuple[str, ...]:
    """The free keys that are not free in this run, by what it scores while it trains."""
    settings, in_turn = recipe.train, recipe.data.mix.order == "in_turn"
    tasks = settings.eval_tasks_every is not None or settings.metric != LOSS
    return (
        *(("eval.limit",) if tasks or in_turn or settings.eval_every is not None else ()),
        *(("eval.tasks",) if tasks else ()),
    )


def _same_recipe(folder: RunFolder, recipe: Recipe, more: bool) -> None:
    before = own_recipe(folder.path).recipe
    scored = _scored_on(before)
    changes = [c for c in compare(before, recipe) if c[0] in scored or not is_free(c[0])]
    # What was true by default is now found out, and compared as such with the run's record.
    changes = [c for c in changes if c != ("train.packing", True, None)]
    if more and recipe.train.extended[:-1] == before.train.extended:
        changes = [c for c in changes if c[0] != "train.extended"]
    if changes:
        lines = "\n".join(f"  {key}: {_difference(old, new)}" for key, old, new in changes)
        raise UsageError(
            f"{folder.path}: the recipe changed since this run began, so it cannot be resumed (its own can: lrft train "
            f"{folder.path} --resume; a changed one trains in another --out):\n{lines}"
        )


def _difference(old: Json, new: Json) -> str:
    """Old and new; of long texts, such as templates, the places where they part."""
    if not (isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > 2 * AROUND):
        return f"{old!r} -> {new!r}"
    alike = next(
        (k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    begin = max(0, alike - AROUND // 2)
    shown = (repr(text[begin : begin + AROUND]) for text in (old, new))
    return f"from character {alike} on, {' -> '.join(shown)}"
