"""From an adapted model to everything that training needs: optimizer, schedule, callbacks, data order."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from lrft.build.adapt import Adaptation
from lrft.build.began import identified
from lrft.build.callbacks import callbacks_of as callbacks_of
from lrft.build.compiling import worth_compiling
from lrft.build.in_turn import tasks_of
from lrft.build.native import kernels_of
from lrft.build.optimizing import build_optimizer
from lrft.build.privacy import check_private, privacy_of
from lrft.build.rollouts import make_rollouts
from lrft.build.scoring import subject as subject
from lrft.build.steps import steps_left, train_data
from lrft.build.taught import objective_of
from lrft.build.text import Text
from lrft.core.objective import Objective
from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.core.stages import ranks_of
from lrft.data.steps import StepBatches
from lrft.model.causal_lm import CausalLM
from lrft.model.noise import add_noise
from lrft.model.trained import parameter_infos
from lrft.recipe.length import check_length
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json
from lrft.training import schedule
from lrft.training.checkpoint import Identity
from lrft.training.folder import RunFolder
from lrft.training.trained_on import TrainedOn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lrft.build.offloading import Offloading


@dataclass
class Job:
    """Everything `train` needs.

    Attributes:
        steps: makes the steps that are left; to be closed when no more are taken.
        began: what run.json and each checkpoint say of how the run began.
        trained_on: what rows and base are; None where nothing is written.
    """

    run: Run
    steps: Callable[[], Generator[StepBatches, None, None]]
    objective: Objective
    text: Text
    adaptation: Adaptation
    identity: Identity
    folder: RunFolder
    began: dict[str, Json]
    trained_on: TrainedOn | None = None


def assemble(
    recipe: Recipe,
    folder: RunFolder,
    text: Text,
    adaptation: Adaptation,
    accelerator: Accelerator,
    recipe_hash: str,
    trust_remote_code: bool = False,
    trained_on: TrainedOn | None = None,
    away: Offloading | None = None,
) -> Job:
    """Optimizer, schedule, callbacks and data order around an adapted model. Nothing is trained yet.

    Args:
        trained_on: for what is written; None where nothing will be.
        away: keeps the optimizer's state, where the recipe asks for it.

    Raises:
        RecipeError: the optimizer cannot take these parameters, or the run is too short for a setting.
    """
    model, settings = adaptation.model, recipe.train
    processes, rank = accelerator.num_processes, accelerator.process_index
    _check_processes(recipe, processes)
    rows = adaptation.packing, adaptation.joined
    data = train_data(recipe, text, processes, rank, *rows, folder.processes)
    ends = schedule.ends_of(data.total_steps(settings.max_steps, settings.epochs), settings.extended)
    check_length(recipe, ends[0], ranks_of(adaptation.plan))
    infos = parameter_infos(model)
    optimizer = _optimizer(recipe, model, infos, away)
    run = Run(
        model,
        infos,
        optimizer,
        schedule.build(optimizer, recipe.schedule, ends[0], settings.extended),
        ends[-1],
        seed=settings.seed,
        clip=settings.clip,
        folder=folder.path,
        accelerator=accelerator,
        recipe=recipe,
        team=adaptation.team,
        compiled=worth_compiling(recipe, adaptation, ends[0]),
        kernels=kernels_of(adaptation),
        earlier_ends=tuple(ends[:-1]),
        tasks=tasks_of(data),
        where="row {}".format if text.rows is None else text.rows.where,
    )
    objective, taught_by = objective_of(recipe, text, adaptation, trust_remote_code)
    run.privacy = privacy_of(recipe, data, ends[0])
    check_private(recipe, run, objective)
    began, identity = identified(
        run, text, adaptation, recipe_hash, trained_on, folder.processes, trust_remote_code, taught_by
    )
    rollouts = make_rollouts(run, data, text, objective, subject(recipe, text, model), adaptation.joined)
    run.callbacks = callbacks_of(
        recipe, run, text, folder, identity, settings.save_every, objective, rollouts
    )
    whole = partial(train_data, recipe, text, 1, 0, *rows, folder.processes or processes)
    steps = partial(steps_left, run, ends[-1], data if rollouts is None else rollouts, whole)
    return Job(run, steps, objective, text, adaptation, identity, folder, began, trained_on)


def _check_processes(recipe: Recipe, processes: int) -> None:
    if recipe.optimizer.per_layer and processes > 1:
        raise RecipeError("gradients freed at once cannot be summed over processes", "optimizer.per_layer")


def _optimizer(recipe: Recipe, model: CausalLM, infos: list[ParamInfo], away: Offloading | None) -> Optimizer:
    """The recipe's, once the model draws the noise that was asked for."""
    optimizer = build_optimizer(recipe, infos, away)
    if recipe.train.neftune is None:
        return optimizer
    if contract_of(optimizer).calls_closure:
        message = (
            f"{recipe.optimizer.method} compares losses without any noise, so there would be none; remove it"
        )
        raise RecipeError(message, "train.neftune")
    add_noise(model, recipe.train.neftune)
    return optimizer
