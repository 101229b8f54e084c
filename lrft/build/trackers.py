"""The trackers that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from lrft.recipe.schema import Recipe
from lrft.training.trackers.mlflow import Mlflow
from lrft.training.trackers.tensorboard import Tensorboard
from lrft.training.trackers.tracker import Tracker
from lrft.training.trackers.trackio import Trackio
from lrft.training.trackers.wandb import Wandb

KINDS: tuple[type[Tracker], ...] = (Wandb, Tensorboard, Mlflow, Trackio)


def make_trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """One for each setting of `logging` that names a place; `true` is the run folder.

    Raises:
        MissingExtra: a library that is needed is not installed.
    """
    settings = recipe.model_dump(mode="json")
    chosen = [(kind, getattr(recipe.logging, kind.key)) for kind in KINDS]
    return [kind("" if place is True else place, folder, settings) for kind, place in chosen if place]
