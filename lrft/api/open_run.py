"""A finished or interrupted run, brought back as objects."""

from __future__ import annotations

from lrft.build.adapt import Adaptation, adapt
from lrft.build.dataset import read_text
from lrft.build.text import Text
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.model.trained import load_trained_tensors
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, UsageError
from lrft.training import checkpoint, checkpoint_folder
from lrft.training.device import make_accelerator
from lrft.training.folder import PLAN, RECIPE, RUN, RunFolder


def open_run(folder: RunFolder) -> tuple[Recipe, Text, Adaptation]:
    """A run's recipe, data and model, with the adapter of the checkpoint that was named, or the newest good one.

    Raises:
        UsageError: the run has no checkpoint yet.
        CheckpointError: the base model is not the one it was trained on.
        DataError: the rows that were held out cannot be told any more.
    """
    recipe = load_recipe(folder.path / RECIPE, trained=True).recipe
    saved = folder.chosen or checkpoint_folder.newest(folder.checkpoints, say)
    if saved is None:
        raise UsageError(f"{folder.path}: has no checkpoint yet; train it first")
    trusted = trusts_remote_code(folder)
    text = read_text(recipe, training=False, trust_remote_code=trusted, today=folder.day)
    _check_held_out(folder, recipe, text)
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


def _check_held_out(folder: RunFolder, recipe: Recipe, text: Text) -> None:
    """Refuse rows that were drawn from a file which is another one now: the run may have been trained on them."""
    if recipe.data.split is not None and text.fingerprints["eval"] != folder.read(RUN)["data"]["eval"]:
        raise DataError(
            f"data.split: the files of data.train changed since {folder.path} began, so rows that would be held out "
            "now may have been trained on; put back what was there"
        )


def trusts_remote_code(folder: RunFolder) -> bool:
    """Whether the run was started with --trust-remote-code."""
    return bool(folder.read(RUN).get("trust_remote_code"))
