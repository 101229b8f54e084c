"""A finished or interrupted run, brought back as objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lrft.api.opening.same_start import check_same_base, check_same_use
from lrft.build.adapt import Adaptation, adapt
from lrft.build.dataset import read_text
from lrft.build.identify import identify
from lrft.build.optimizing import build_optimizer
from lrft.build.rows import training_rows
from lrft.build.text import Text
from lrft.core.adapted import adapted, adapters_off
from lrft.core.notes import say
from lrft.core.units import CUT
from lrft.data.example import Row
from lrft.evaluation.progress import EvaluationBar
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.trained import (
    base_parameters,
    load_trained_tensors,
    parameter_infos,
    put_back,
    trained_tensors,
)
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, UsageError
from lrft.training import checkpoint
from lrft.training.chosen import open_chosen
from lrft.training.device import make_accelerator
from lrft.training.folder import RUN, RunFolder
from lrft.training.launcher import sharded_as_launched
from lrft.training.opened import OpenCheckpoint
from lrft.training.relied import check_relied, own_recipe, plan_of
from lrft.training.replayed import is_record, replay
from lrft.training.trained_on import TrainedOn


@dataclass(frozen=True)
class Opened:
    """A run's recipe, data and model with the adapter of a checkpoint, and what that was trained on, as it is now."""

    recipe: Recipe
    text: Text
    adaptation: Adaptation
    checkpoint: str
    trained_on: TrainedOn


def open_run(folder: RunFolder, scores: bool = False) -> tuple[Recipe, Text, Adaptation]:
    """As `open_checkpoint`: recipe, data and model alone."""
    found = open_checkpoint(folder, scores)
    return found.recipe, found.text, found.adaptation


def open_checkpoint(folder: RunFolder, scores: bool = False) -> Opened:
    """A run with the adapter of the checkpoint that was named, or the newest good one.

    Code that comes with the base model runs where `folder.trusted` says so; run.json, which may be a stranger's, only
    records that it did.

    Args:
        scores: whether the caller knows what to do with a model that scores whole texts (`model.head`), or embeds them.

    Raises:
        UsageError: the run has no checkpoint yet, or its model writes no text and the caller wants one.
        CheckpointError: the base model, its tokenizer or its chat template is not what it was trained with.
        DataError: the rows that were held out cannot be told any more.
    """
    recipe = own_recipe(folder.path).recipe
    if recipe.model.head is not None and not scores:
        raise UsageError(
            f"{folder.path}: its model scores whole texts (model.head) and writes none; lrft eval scores it, lrft "
            "merge makes a classifier of it, and lrft export --for peft writes its adapter"
        )
    if embeds(recipe.objective.method) and not scores:
        raise UsageError(
            f"{folder.path}: its model was trained to embed texts ({recipe.objective.method}) and writes none; lrft "
            "eval scores it, lrft merge writes it, and lrft export --for peft its adapter"
        )
    saved = _open_checkpoint(folder, recipe)
    text = read_text(recipe, training=False, trust_remote_code=folder.trusted, today=folder.day)
    _check_held_out(folder, recipe, text)
    adaptation, trained_on = _with_adapter(folder, recipe, saved, text)
    return Opened(recipe, text, adaptation, saved.path.name, trained_on)


def open_model(folder: RunFolder) -> tuple[Recipe, Adaptation, int]:
    """A run's recipe and model without its data, which may be gone, and the step of the checkpoint.

    Raises:
        UsageError, CheckpointError: see `open_checkpoint`.
    """
    recipe = own_recipe(folder.path).recipe
    saved = _open_checkpoint(folder, recipe)
    return recipe, _with_adapter(folder, recipe, saved, None)[0], saved.step


def _open_checkpoint(folder: RunFolder, recipe: Recipe) -> OpenCheckpoint:
    """The checkpoint that is meant, held open, of this recipe and this run."""
    saved = open_chosen(folder)
    check_relied(saved, recipe, folder.read(RUN))
    return saved


def _with_adapter(
    folder: RunFolder, recipe: Recipe, saved: OpenCheckpoint, text: Text | None
) -> tuple[Adaptation, TrainedOn]:
    recipe = sharded_as_launched(recipe)
    if recipe.offload.parts:
        say("offload: is of training; the whole model is held here")
    with EvaluationBar() as show, saved:
        now = identify(recipe, text)
        check_same_use(folder, saved, now)
        device = make_accelerator(recipe.train.device, recipe.model.dtype).device
        tensors, record = saved.tensors(), is_record(saved)
        adaptation = adapt(
            recipe,
            device=device,
            trust_remote_code=folder.trusted,
            saved=None if record else tensors,
            planned=None if record else plan_of(saved, folder),
            trains=False,
            sums=True,
            progress=show,
        )
        now = replace(now, base=adaptation.model.weight_sums)
        check_same_base(folder, saved, now)
        known = checkpoint.Identity(recipe_hash(recipe), adaptation.model.fingerprint)
        checkpoint.check_identity(saved, known)
        if record:
            optimizer = build_optimizer(recipe, parameter_infos(adaptation.model))
            replay(optimizer, saved, trained_tensors(adaptation.model))
        else:
            load_trained_tensors(adaptation.model, tensors)
    adaptation.model.eval()
    return adaptation, now


def check_base(recipe: Recipe, model: CausalLM, option: str) -> None:
    """Refuse `option`, which asks for the bare base model, where there is none.

    Raises:
        UsageError: what trained is the model's weights themselves.
    """
    if model.labels:
        raise UsageError(f"{option}: the base has no score head, which begins at random; leave it out")
    if model.pruned is not None and model.pruned.state == CUT:
        raise UsageError(f"{option}: units of the base were cut off before it trained; leave it out")
    own = any("own_weights" in site.adapter.provides for _, site in adapted(model.hf))
    if own and recipe.adapter is not None:
        raise UsageError(f"{option}: {recipe.adapter.method} is the model's weights itself; there is no base")


@contextmanager
def bare_base(recipe: Recipe, folder: RunFolder, model: CausalLM) -> Iterator[None]:
    """The base as it is stored, without anything that was trained: base weights have their pretrained values again."""
    with adapters_off(model):
        if not any(base_parameters(model)):
            yield
            return
        pretrained = load_model(recipe.model, trust_remote_code=folder.trusted, seed=recipe.train.seed)
        with put_back(model, pretrained):
            yield


def sample_row(recipe: Recipe, text: Text) -> Row:
    """The first held-out row, or else the first one that was trained on."""
    return (text.held_out or training_rows(recipe, 1))[0]


def _check_held_out(folder: RunFolder, recipe: Recipe, text: Text) -> None:
    """Refuse rows that were drawn from a file which is another one now: the run may have been trained on them."""
    if recipe.data.split is not None and text.fingerprints["eval"] != folder.read(RUN)["data"]["eval"]:
        raise DataError(
            f"data.split: the files of data.train changed since {folder.path} began, so rows that would be held out "
            "now may have been trained on; put back what was there"
        )
