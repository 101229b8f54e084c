"""A finished or interrupted run, brought back as objects."""

from __future__ import annotations

from lrft.assemble import Adaptation, Text, adapt, read_text
from lrft.core.errors import UsageError
from lrft.jobs.say import say
from lrft.model.attach import load_adapter_tensors
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.train import checkpoint
from lrft.train.device import make_accelerator
from lrft.train.folder import RECIPE, RUN, RunFolder


def open_run(folder: RunFolder) -> tuple[Recipe, Text, Adaptation]:
    """A run's recipe, data and model, with the adapter of its newest good checkpoint.

    Raises:
        UsageError: the run has no checkpoint yet.
        CheckpointError: the base model is not the one it was trained on.
    """
    recipe = load_recipe(folder.path / RECIPE).recipe
    saved = checkpoint.newest(folder.checkpoints, say)
    if saved is None:
        raise UsageError(f"{folder.path}: has no checkpoint yet; train it first")
    trusted = bool(folder.read(RUN).get("trust_remote_code")) if (folder.path / RUN).is_file() else False
    text = read_text(recipe, training=False, trust_remote_code=trusted)
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    adaptation = adapt(recipe, device=device, trust_remote_code=trusted)
    checkpoint.check_identity(saved, checkpoint.Identity(recipe_hash(recipe), adaptation.model.fingerprint))
    load_adapter_tensors(adaptation.model, checkpoint.read_adapter(saved))
    adaptation.model.eval()
    return recipe, text, adaptation
