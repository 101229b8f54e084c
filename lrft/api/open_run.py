"""A finished or interrupted run, brought back as objects."""

from __future__ import annotations

from pathlib import Path

from lrft.build.adapt import Adaptation, adapt
from lrft.build.dataset import read_text
from lrft.build.text import Text
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.model.trained import load_trained_tensors
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.training import checkpoint, checkpoint_folder
from lrft.training.device import make_accelerator
from lrft.training.folder import PLAN, RECIPE, RUN, RunFolder


def open_run(folder: RunFolder) -> tuple[Recipe, Text, Adaptation]:
    """A run's recipe, data and model, with the adapter of the checkpoint that was named, or the newest good one.

    Raises:
        UsageError: the run has no checkpoint yet.
        CheckpointError: the base model is not the one it was trained on.
    """
    recipe, saved = _recipe_and_checkpoint(folder)
    trusted = trusts_remote_code(folder)
    text = read_text(recipe, training=False, trust_remote_code=trusted, today=folder.day)
    return recipe, text, _with_adapter(folder, recipe, saved)


def open_model(folder: RunFolder) -> tuple[Recipe, Adaptation, int]:
    """A run's recipe and model without its data, which may be gone, and the step of the checkpoint.

    Raises:
        UsageError, CheckpointError: see `open_run`.
    """
    recipe, saved = _recipe_and_checkpoint(folder)
    return recipe, _with_adapter(folder, recipe, saved), checkpoint_folder.step_of(saved)


def _recipe_and_checkpoint(folder: RunFolder) -> tuple[Recipe, Path]:
    recipe = load_recipe(folder.path / RECIPE, trained=True).recipe
    saved = folder.chosen or checkpoint_folder.newest(folder.checkpoints, say)
    if saved is None:
        raise UsageError(f"{folder.path}: has no checkpoint yet; train it first")
    return recipe, saved


def _with_adapter(folder: RunFolder, recipe: Recipe, saved: Path) -> Adaptation:
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    with EvaluationBar() as show:
        tensors = checkpoint.read_adapter(saved)
        adaptation = adapt(
            recipe,
            device=device,
            trust_remote_code=trusts_remote_code(folder),
            saved=tensors,
            planned=folder.read(PLAN),
            trains=False,
            progress=show,
        )
    checkpoint.check_identity(saved, checkpoint.Identity(recipe_hash(recipe), adaptation.model.fingerprint))
    load_trained_tensors(adaptation.model, tensors)
    adaptation.model.eval()
    return adaptation


def trusts_remote_code(folder: RunFolder) -> bool:
    """Whether the run was started with --trust-remote-code."""
    return bool(folder.read(RUN).get("trust_remote_code"))
