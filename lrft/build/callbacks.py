"""What acts during a training, beside and between its steps: methods, scores, records, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lrft.build.adapter_folder import write_adapter
from lrft.build.in_turn import make_task_scores
from lrft.build.privacy import spending_of
from lrft.build.rollouts import Rollouts
from lrft.build.scoring import make_scorer, subject
from lrft.build.text import Text
from lrft.build.trackers import make_trackers
from lrft.core.callback import Callback
from lrft.core.objective import Objective
from lrft.core.params import count
from lrft.core.run import Run
from lrft.files.unchanging import Unchanging
from lrft.model.trained import trained_tensors
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, ANALYSES, TIMED
from lrft.registry.json import Json
from lrft.training.adapter_folders import AdapterFolders
from lrft.training.checkpoint import Identity
from lrft.training.folder import METRICS, RunFolder
from lrft.training.gradient_check import GradientCheck
from lrft.training.keepers import GoneByParts, LossScale, Saver, StopAtLoss, StopOnSignal
from lrft.training.metrics import Bar, MetricsFile, last_loss


def callbacks_of(
    recipe: Recipe,
    run: Run,
    text: Text,
    folder: RunFolder,
    identity: Identity,
    every: int,
    objective: Objective | None = None,
    rollouts: Rollouts | None = None,
) -> list[Callback]:
    """In the order they act after a step: methods, what looks at them, score, write the line, show it, save.

    The line comes before the checkpoint, so that a kill between the two cannot lose a step's record.

    Args:
        every: steps between checkpoints.
        rollouts: where answers are generated while it trains.
    """
    settings, logging = recipe.train, recipe.logging
    bar = Bar(logging.every)
    scorer = make_scorer(recipe, run, text, subject(recipe, text, run.model, bar.watch, run.team))
    saver = Saver(
        partial(trained_tensors, run.model),
        folder.checkpoints,
        identity,
        every=every,
        keep_last=settings.keep_last,
        scorer=scorer,
        adapters=AdapterFolders(folder.path, partial(_write_adapter, run, text, Unchanging()), scorer),
    )
    scale = LossScale(run.device.type) if recipe.model.dtype == "float16" else None
    found = [
        GradientCheck(),
        spending_of(run),
        rollouts,
        *_timed_methods(recipe),
        objective if isinstance(objective, Callback) else None,
        None if settings.stop_below is None else StopAtLoss(settings.stop_below),
        *(ANALYSES.get(config.method)(config) for config in recipe.analyse),
        scale,
        scorer,
        make_task_scores(recipe, run, text),
        MetricsFile(folder.path / METRICS),
        GoneByParts(),
        bar,
        *make_trackers(recipe, folder.path),
        StopOnSignal(),
        saver,
    ]
    return [callback for callback in found if callback is not None]


def _timed_methods(recipe: Recipe) -> list[Callback]:
    """The methods that act over time, the adapter's own last; a static allocator has done its part in the plan."""
    chosen = [(registry, getattr(recipe, axis)) for axis, registry in TIMED.items()]
    made = [registry.get(config.method)(config) for registry, config in chosen if config is not None]
    if recipe.adapter is not None:
        made.append(ADAPTERS.get(recipe.adapter.method).timed(recipe.adapter))
    return [method for method in made if isinstance(method, Callback)]


def _write_adapter(
    run: Run, text: Text, beside: Unchanging, folder: Path, checkpoint: Mapping[str, Json]
) -> None:
    """Write the adapter of the step just finished, with a card that says so."""
    lines = folder.parent / METRICS
    card: dict[str, Json] = {
        "name": folder.parent.name,
        "step": run.step,
        "trainable": count(info.param for info in run.parameters),
        "loss": run.metrics.get("loss", last_loss(lines)),
    }
    write_adapter(folder, run.model, run.recipe, text, card, checkpoint, beside)
