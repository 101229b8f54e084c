"""What a checkpoint relies on beside its own files, and whether the run folder around it still says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrft.files.read import RECORD, read_bytes
from lrft.files.sums import MANIFEST, content_difference
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.resolved import FREE_SECTIONS, decisive_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, RecipeError
from lrft.training.checkpoint_folder import open_newest
from lrft.training.folder import RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.run_manifest import PLAN, RECIPE, RUN, read_checked, read_sums, tell_once

# Of run.json, what the weights and the scores of a checkpoint follow from; the rest may change while a run goes on.
FIXED = ("base_fingerprint", "data", "date", "packing", "packing_order", "joined", "processes")


def own_recipe(run: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe that a run recorded, once it is known to be what was written.

    Raises:
        DamagedFile: it was edited, or is damaged; says what changes a setting.
        RecipeError: it is none, or the overrides do not fit.
    """
    path = run / RECIPE
    try:
        read_checked(run, RECIPE)
    except DamagedFile as error:
        if error.file != str(path):
            raise
        if not _decides_alike(path):
            raise DamagedFile(path, error.problem, _remedy(run)) from None
        tell_once(
            f"{path}: was edited since lrft wrote it; what decides the weights is as it was, so its sections "
            f"{', '.join(FREE_SECTIONS)} are believed as they are now"
        )
    return load_recipe(path, overrides, trained=True)


def check_relied(saved: OpenCheckpoint, recipe: Recipe, record: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another recipe, or of a run that began otherwise.

    Args:
        record: what run.json says.

    Raises:
        DamagedFile: names the file that does not fit the checkpoint.
    """
    run, manifest = saved.path.parent.parent, saved.manifest
    if manifest["format"] == 1:
        tell_once(
            f"{saved.path}: made by an older lrft, so {PLAN}, {RUN} and {RECIPE} are not compared with it"
        )
        return
    if manifest["decisive"] != decisive_hash(recipe):
        what = f"is another recipe than {saved.path.name} was trained with (it was edited, or the folder put together)"
        raise DamagedFile(run / RECIPE, what, _remedy(run))
    for key in FIXED:
        here, there = record.get(key), (manifest.get("run") or {}).get(key)
        if not _same(here, there):
            raise DamagedFile(
                run / RUN, f"says {key} {here!r}, where {saved.path.name} was trained with {there!r}"
            )
    if read_sums(run) is None:
        tell_once(
            f"{run / MANIFEST}: is missing, so the sections eval, export and logging of {RECIPE} are believed; "
            f"lrft train {run} --resume writes it anew"
        )


def _decides_alike(path: Path) -> bool:
    """Whether an edited recipe is still the one that the newest checkpoint was trained with, but for what is free."""
    try:
        saved = open_newest(path.parent / "checkpoints", lambda line: None)
        if saved is None:
            return False
        with saved:
            return bool(
                saved.manifest.get("decisive") == decisive_hash(load_recipe(path, trained=True).recipe)
            )
    except (RecipeError, DamagedFile):
        return False


def plan_of(saved: OpenCheckpoint, folder: RunFolder) -> dict[str, Any]:
    """The plan that a checkpoint was trained with: its own copy, or plan.json beside one that an older lrft made."""
    own: dict[str, Any] | None = saved.manifest.get("plan")
    return folder.read(PLAN) if own is None else own


def _same(here: object, there: object) -> bool:
    """Whether two values agree, of two sections on what both of them say."""
    if isinstance(here, dict) and isinstance(there, dict):
        return all(here[key] == there[key] for key in here.keys() & there.keys())
    return here == there


def _remedy(run: Path) -> str:
    copy = _copy_of_recipe(run)
    back = "put back what lrft wrote" if copy is None else f"copy {copy} over it"
    *some, last = FREE_SECTIONS
    return (
        f"{back}; {', '.join(some)} and {last} are changed with lrft train {run} --resume KEY=VALUE, anything else "
        f"begins a new run: lrft train {run / RECIPE} --out NEW"
    )


def _copy_of_recipe(run: Path) -> Path | None:
    """Another copy of the recipe in the run folder that is whole."""
    for folder in ("last", "adapter", "best"):
        path = run / folder / RECIPE
        try:
            content, sums = read_bytes(path, RECORD, run), read_sums(run)
        except DamagedFile:
            continue
        if sums is not None and not all(content_difference(content, entry) for entry in sums.get(RECIPE, [])):
            return path
    return None
