"""The recipe that a run recorded, to go on with the run: as it is, or with more steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from lrft.recipe import library
from lrft.recipe.inside_sections import Extension
from lrft.recipe.load import LoadedRecipe, as_loaded, load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training import checkpoint_folder
from lrft.training.folder import RECIPE, RESULT, ROOT, RUN, RunFolder


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
    """What result.json holds of a run that is complete with so many extensions; None of any other."""
    if not (folder.path / RESULT).is_file() or not folder.adapter.is_dir():
        return None
    if len(folder.read(RUN).get("extended", [])) != extensions:
        return None
    result: dict[str, Json] = folder.read(RESULT)
    return result


def finished_as_planned(folder: RunFolder) -> dict[str, Json] | None:
    """What result.json holds of a run that is complete with all the steps that its own recipe has by now."""
    path = folder.path / RECIPE
    recorded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return finished(folder, len(recorded.get("train", {}).get("extended", [])))


def _check_patience(run: RunFolder, recipe: Recipe) -> None:
    """Refuse to extend what `train.patience` ended: the longer recipe, trained from the start, would end there too.

    Raises:
        UsageError: says where it ended, and how to train on from there.
    """
    patience = recipe.train.patience
    saved = None if patience is None else checkpoint_folder.newest(run.checkpoints)
    if patience is None or saved is None:
        return
    state = json.loads((saved / "state.json").read_bytes())
    if state["callbacks"].get("Scorer", {}).get("since", 0) >= patience:
        raise UsageError(
            f"--more-steps: train.patience ended {run.path} at step {state['step']}, and would end it there again; "
            f"begin a new run with it (model.adapter={run.path}), or train anew with more patience"
        )


def _run_called(name: Path | str) -> RunFolder | None:
    """The run folder of that path, or of that name under runs/; None where a recipe is meant."""
    if Path(name).is_file() or library.has(str(name).removesuffix(".yaml")):
        return None
    folders = [folder for path in (Path(name), ROOT / name) if (folder := RunFolder(path)).started]
    return next((folder for folder in folders if (folder.path / RUN).is_file()), None)


def _recorded(run: RunFolder, overrides: Sequence[str], added: Extension | None) -> LoadedRecipe:
    loaded = load_recipe(run.path / RECIPE, overrides, trained=True)
    if added is not None:
        if finished(run, len(loaded.recipe.train.extended)) is None:
            raise UsageError(
                f"--more-steps: {run.path} is not at its end yet; lrft train {run.path} --resume goes on with it"
            )
        _check_patience(run, loaded.recipe)
        steps = [extension.model_dump_json() for extension in (*loaded.recipe.train.extended, added)]
        extended = f"train.extended=[{', '.join(steps)}]"
        loaded = load_recipe(run.path / RECIPE, [*overrides, extended], trained=True)
    name = run.read(RUN).get("recipe_name") or run.path.name
    return replace(loaded, name=name, run=run.path)
