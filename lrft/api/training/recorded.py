"""The recipe that a run recorded, to go on with the run: as it is, or with more steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrft.files.sums import MANIFEST, folder_fault, is_covered
from lrft.recipe import library
from lrft.recipe.inside_sections import Extension
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, MissingFile, UsageError
from lrft.registry.json import Json
from lrft.training import checkpoint_folder
from lrft.training.folder import PLAN, RESULT, RUN, RunFolder, places
from lrft.training.relied import own_recipe
from lrft.training.run_manifest import tell_once
from lrft.training.within_run import LAST, within_run


def to_train(
    recipe: LoadedRecipe | Path | str,
    overrides: Sequence[str] = (),
    resume: bool = False,
    added: Extension | None = None,
) -> LoadedRecipe:
    """The recipe that is meant: with `resume` that of a run that is named, else a file's or a packaged one.

    Args:
        recipe: a loaded one, a file, the name of a packaged one, or with `resume` a run folder, its path or name.
        added: steps to add to the run that is named.

    Raises:
        RecipeError: the recipe is not valid, or cannot be extended.
        UsageError: steps are to be added to what is no finished run.
    """
    run = None if isinstance(recipe, LoadedRecipe) or not resume else _run_called(recipe)
    if run is not None:
        return _recorded(run, overrides, added)
    if added is not None and not (isinstance(recipe, LoadedRecipe) and recipe.run is not None):
        raise UsageError(
            "--more-steps: belongs to a finished run; write lrft train RUN --resume --more-steps N"
        )
    return as_loaded(recipe, overrides)


def extension(steps: int | None, rate: str | None = None) -> Extension | None:
    """Steps to add to a run as a command is asked for them; None where it is not.

    Args:
        rate: one of `stretched`, the default, `again` and `held` (`train.extended`).

    Raises:
        UsageError: there is no such rate, or only a rate.
    """
    known = ("stretched", "again", "held")
    if rate is not None and rate not in known:
        raise UsageError(f"--more-rate {rate}: choose {', '.join(known[:-1])} or {known[-1]}")
    if rate is not None and steps is None:
        raise UsageError(f"--more-rate {rate}: says what the rate does in added steps; add --more-steps N")
    return None if steps is None else Extension.model_validate({"steps": steps, "rate": rate or "stretched"})


def finished(folder: RunFolder, extensions: int) -> dict[str, Json] | None:
    """What result.json holds of a run that is complete with so many extensions; None of any other.

    A run of which a file is damaged is not: gone on with, it writes the file again from its last checkpoint.
    """
    try:
        return _result(folder, extensions)
    except DamagedFile as error:
        tell_once(f"{error.file}: {error.problem}; it is written again from the last checkpoint")
        return None


def finished_as_planned(folder: RunFolder) -> dict[str, Json] | None:
    """What result.json holds of a run that is complete with all the steps that its own recipe has by now.

    Raises:
        DamagedFile: a file of the run is not what was written.
    """
    if not folder.started:
        return None
    return _result(folder, len(own_recipe(folder.path).recipe.train.extended))


def _result(folder: RunFolder, extensions: int) -> dict[str, Json] | None:
    if not folder.has(RESULT) or not folder.has(folder.adapter.name):
        return None
    remedy = f"lrft train {folder.path} --resume writes it again"
    try:
        record, _, result = (folder.read_whole(name) for name in (RUN, PLAN, RESULT))
    except DamagedFile as error:
        raise DamagedFile(error.file, error.problem, remedy) from None
    if len(record.get("extended", [])) != extensions:
        return None
    for one in (folder.adapter, folder.path / LAST):
        if one.exists() and (problem := folder_fault(one)):
            raise DamagedFile(one, problem, remedy)
    if is_covered(folder.adapter) and not folder.has(MANIFEST):
        raise MissingFile(folder.path / MANIFEST, "is missing", remedy)
    found: dict[str, Json] = result
    return found


def _check_patience(run: RunFolder, recipe: Recipe) -> None:
    """Refuse to extend what `train.patience` ended: the longer recipe, trained from the start, would end there too.

    Raises:
        UsageError: says where it ended, and how to train on from there.
    """
    patience = recipe.train.patience
    saved = None if patience is None else checkpoint_folder.open_newest(run.checkpoints)
    if patience is None or saved is None:
        return
    with saved:
        state = saved.state()
    if state["callbacks"].get("Scorer", {}).get("since", 0) >= patience:
        raise UsageError(
            f"--more-steps: train.patience ended {run.path} at step {state['step']}, and would end it there again; "
            f"begin a new run with it (model.adapter={run.path}), or train anew with more patience"
        )


def _run_called(name: Path | str) -> RunFolder | None:
    """The run folder of that path, or of that name under runs/; None where a recipe is meant.

    Raises:
        UsageError: it is one of a run's adapters or checkpoints, from which nothing is gone on with.
    """
    if Path(name).is_file() or library.has(str(name).removesuffix(".yaml")):
        return None
    if within := next((found for path in places(name) if (found := within_run(path)) is not None), None):
        raise UsageError(
            f"{name}: is inside of the run {within.run}; lrft train {within.run} --resume goes on from its newest "
            f"checkpoint, and model.adapter={name} begins a new run"
        )
    folders = [folder for path in places(name) if (folder := RunFolder(path)).started]
    return next((folder for folder in folders if (folder.path / RUN).is_file()), None)


def _recorded(run: RunFolder, overrides: Sequence[str], added: Extension | None) -> LoadedRecipe:
    loaded = own_recipe(run.path, overrides)
    if added is not None:
        if finished(run, len(loaded.recipe.train.extended)) is None:
            raise UsageError(
                f"--more-steps: {run.path} is not at its end yet; lrft train {run.path} --resume goes on with it"
            )
        origin = run.read(RUN)
        if made := next((how for how in ("combined", "generated") if origin.get(how)), None):
            raise UsageError(
                f"--more-steps: {run.path} was {made} and not trained; begin a new run with it "
                f"(model.adapter={run.path})"
            )
        _check_patience(run, loaded.recipe)
        steps = [extension.model_dump_json() for extension in (*loaded.recipe.train.extended, added)]
        extended = f"train.extended=[{', '.join(steps)}]"
        loaded = own_recipe(run.path, [*overrides, extended])
    name = run.read(RUN).get("recipe_name") or run.path.name
    return replace(loaded, name=name, run=run.path)
