"""From an adapted model to everything that a federation needs: clients, server, callbacks, and rounds for steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from lrft.build.adapt import Adaptation
from lrft.build.began import identified
from lrft.build.clients import Clients
from lrft.build.job import Job, callbacks_of
from lrft.build.privacy import check_private, tell_privacy
from lrft.build.reach import InTurn
from lrft.build.rounds import MakeReach, Rounds, Summary
from lrft.build.shares import shares_of, tell
from lrft.build.spent_by_clients import SpentByClients
from lrft.build.text import Text
from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.objective import Objective
from lrft.core.run import Run
from lrft.data.steps import StepBatches
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, OBJECTIVES
from lrft.registry.errors import RecipeError, UsageError
from lrft.training.folder import RunFolder
from lrft.training.schedule import Restartable
from lrft.training.trained_on import TrainedOn

if TYPE_CHECKING:
    from accelerate import Accelerator


def assemble_federation(
    recipe: Recipe,
    folder: RunFolder,
    text: Text,
    adaptation: Adaptation,
    accelerator: Accelerator,
    recipe_hash: str,
    trust_remote_code: bool = False,
    trained_on: TrainedOn | None = None,
    reach: MakeReach | None = None,
) -> Job:
    """A job whose steps are rounds; nothing is trained yet. Tells which rows every client holds.

    Args:
        reach: makes what reaches the clients; by default they train here in turn.

    Raises:
        UsageError: several processes were launched.
        RecipeError: the adapter cannot be federated, or see `Clients` and `Rounds`.
        DataError: the rows cannot be shared so.
    """
    assert recipe.federate is not None, "a recipe of a federation"
    if accelerator.num_processes > 1:
        raise UsageError(
            "lrft federate: clients train one after the other in one process; start it without a launcher"
        )
    _check_adapter(recipe)
    shares = shares_of(recipe, text)
    clients = Clients(recipe, text, adaptation, shares, accelerator)
    server, total = Rounds(clients, reach or InTurn), recipe.federate.rounds
    run = Run(
        adaptation.model,
        clients.infos,
        server,
        Restartable(server, lambda step: 1.0),
        total,
        seed=recipe.train.seed,
        folder=folder.path,
        accelerator=accelerator,
        recipe=recipe,
        team=adaptation.team,
    )
    server.run = run
    _check_settling(run)
    objective = _objective_of(recipe)
    check_private(recipe, run, objective)
    for sentence in tell(recipe, text, shares):
        say(sentence)
    tell_privacy(recipe)
    began, identity = identified(
        run, text, adaptation, recipe_hash, trained_on, folder.processes, trust_remote_code
    )
    own = [Summary(server)] if recipe.privacy is None else [Summary(server), SpentByClients(recipe, server)]
    run.callbacks = [*own, *callbacks_of(recipe, run, text, folder, identity, every=1)]

    def steps() -> Generator[StepBatches, None, None]:
        return (_round() for _ in range(run.step, total))

    return Job(run, steps, objective, text, adaptation, identity, folder, began, trained_on)


def _round() -> StepBatches:
    """No rows of the server's own: its clients take theirs."""
    return StepBatches([], 0, 0, 0, 0, 0.0)


def _check_settling(run: Run) -> None:
    if run.settling:
        raise RecipeError(
            "takes a step of its own after every update, which nothing averages", "adapter.method"
        )


def _objective_of(recipe: Recipe) -> Objective:
    """The recipe's, of which clients make one each for every round.

    Raises:
        RecipeError: it goes by what it saw of the steps before.
    """
    found: Objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
    if isinstance(found, Callback):
        message = f"{found.name} hears of the steps of one run, which clients do not share; choose another"
        raise RecipeError(message, "objective.method")
    return found


def _check_adapter(recipe: Recipe) -> None:
    if recipe.adapter is None:
        return
    method = recipe.adapter.method
    if isinstance(ADAPTERS.get(method).timed(recipe.adapter), Callback):
        message = f"{method} does something between the steps of one run, which clients do not share; choose another"
        raise RecipeError(message, "adapter.method")
