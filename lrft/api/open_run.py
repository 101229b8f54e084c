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
from lrft.training import checkpoint
from lrft.training.chosen import best_known, newest_of
from lrft.training.device import make_accelerator
from lrft.training.folder import PLAN, RECIPE, RUN, RunFolder


def open_run(folder: RunFolder) -> tuple[Recipe, Text, Adaptation]:
    """A run's recipe, data and model, with the adapter of the checkpoint that was named, or the newest good one.

    Raises:
        UsageError: the run has no checkpoint yet.
        CheckpointError: the base model is not the one it was trained on.
    """
    recipe = load_recipe(folder.path / RECIPE, trained=True).recipe
    saved = folder.chosen or _last(folder)
    trusted = trusts_remote_code(folder)
    text = read_text(recipe, training=False, trust_remote_code=trusted, today=folder.day)
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    with EvaluationBar() as show:
        tensors = checkpoint.read_adapter(saved)
        adaptation = adapt(
            recipe,
            device=device,
            trust_remote_code=trusted,
            saved=tensors,
            planned=folder.read(PLAN),
            trains=False,
            progress=show,
        )
    checkpoint.check_identity(saved, checkpoint.Identity(recipe_hash(recipe), adaptation.model.fingerprint))
    load_trained_tensors(adaptation.model, tensors)
    adaptation.model.eval()
    return recipe, text, adaptation


def _last(folder: RunFolder) -> Path:
    """The newest checkpoint; says so where another one is the best."""
    last = newest_of(folder)
    if (best := best_known(last)) not in (None, last.name):
        say(f"this is the last checkpoint, {last.name}; the best one is {folder.checkpoints / str(best)}")
    return last


def trusts_remote_code(folder: RunFolder) -> bool:
    """Whether the run was started with --trust-remote-code."""
    return bool(folder.read(RUN).get("trust_remote_code"))
