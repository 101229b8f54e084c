"""A recipe's privacy: what its steps do to gradients, what cannot be accounted for, and what was spent so far."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.objective import Objective
from lrft.core.privacy import Privacy, Secret
from lrft.core.run import Run
from lrft.data.poisson import PoissonData
from lrft.data.steps import TrainData
from lrft.model.trained import trained_tensors
from lrft.recipe.privacy_section import PrivacySection
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import DataError, NumericalError, RecipeError, UsageError
from lrft.registry.json import Json
from lrft.training.accountant import Spent, epsilon_of, noise_for

STARTED = "privacy"  # the key of result.json


def privacy_of(recipe: Recipe, data: TrainData, steps: int) -> Privacy | None:
    """What each of `steps` planned steps on these rows does to gradients; None where nothing is private.

    Raises:
        DataError: delta is no smaller than one over the rows.
        RecipeError: no noise brings the steps down to the epsilon that is asked for.
    """
    if not isinstance(data, PoissonData):
        return None
    asked, rows = _asked(recipe), len(data.usable)
    if asked.delta >= 1 / rows:
        raise DataError(
            f"privacy.delta: {asked.delta:g} is not below one over the {rows} rows that are to be kept private, so it "
            f"would allow to publish a row; write at most {1 / (10 * rows):.0e}"
        )
    noise = asked.noise
    if noise is None:
        assert asked.epsilon is not None, "one of the two, which the recipe was checked for"
        noise = _noise(asked.epsilon, asked.delta, data.rate, steps, asked.accountant)
    return Privacy(asked.clip, noise, data.expected, data.rate, data.secret)


def check_private(recipe: Recipe, run: Run, objective: Objective) -> None:
    """Refuse what looks at rows beside the bounded gradients.

    Raises:
        UsageError: several processes were launched.
        RecipeError: a part of the recipe does.
    """
    if recipe.privacy is None:
        return
    if run.processes > 1:
        raise UsageError("privacy: rows are taken one at a time in one process; start it without a launcher")
    method = "" if recipe.adapter is None else recipe.adapter.method
    timed = method and isinstance(ADAPTERS.get(method).timed(recipe.adapter), Callback)
    if timed or run.settling or run.penalized:
        does = "does something between steps" if timed or run.settling else "adds a penalty to the loss"
        raise RecipeError(f"{method} {does}, which nobody accounts for; choose another", "adapter.method")
    if isinstance(objective, Callback):
        message = f"{recipe.objective.method} keeps what it saw of rows from step to step; choose another"
        raise RecipeError(message, "objective.method")


def check_not_private(recipe: Recipe) -> None:
    """Refuse a recipe whose clients would train where this process does not see what they spend.

    Raises:
        RecipeError: it is private.
    """
    if recipe.privacy is not None:
        message = "is accounted for where all clients train in one process; write null, or use lrft federate"
        raise RecipeError(message, "privacy")


def tell_privacy(recipe: Recipe) -> None:
    """Say what the guarantee does not cover."""
    asked = recipe.privacy
    if asked is None:
        return
    say("privacy: of each training row, for whoever sees weights alone; the run's losses are without noise")
    if asked.seed is not None:
        say(
            "privacy.seed: who knows it can take the noise off again; keep the recipe and the run folder to yourself"
        )
    if recipe.train.patience is not None or recipe.train.eval_every is not None:
        say("privacy: the best step and the end are chosen by held-out rows, which have no guarantee")
    chosen = {"data.dedup: near": recipe.data.dedup == "near", "data.split": recipe.data.split is not None}
    for key in (key for key, there in chosen.items() if there):
        say(f"privacy: {key} chooses rows by looking at all of them, which is not accounted for")
    if recipe.model.adapter is not None or recipe.model.adapters:
        say("privacy: what the adapter began with learnt from its rows before is not accounted for")


def spending_of(run: Run) -> Spending | None:
    """What counts the private steps of a run; None where they are not, or are its clients'."""
    return None if run.privacy is None else Spending(run.recipe, run.privacy)


class Spending(Callback):
    """Counts the private steps of a run, and says what they are worth."""

    def __init__(self, recipe: Recipe, privacy: Privacy) -> None:
        self.asked, self.privacy = _asked(recipe), privacy
        self.steps = 0
        self._beside: dict[str, torch.Tensor] | None = None

    def start(self, run: Run) -> None:
        """Tell what is not covered, and copy what is saved beside what trains, which no row may change."""
        tell_privacy(run.recipe)
        self._beside = {name: value.clone() for name, value in _frozen(run).items()}

    def after_step(self, run: Run) -> None:
        self.steps += 1
        if run.step % run.recipe.train.save_every == 0 or run.at_an_end:  # of weights that somebody may see
            run.record(epsilon=self.epsilon)
        if self._beside is not None and run.metrics.get("rows", 1):  # a step that drew none tells nothing
            for name, value in _frozen(run).items():
                if not torch.equal(value, self._beside[name]):
                    raise NumericalError(
                        f"{name} changed in a step and is no parameter, so no noise hides what rows did to it; choose "
                        "another adapter"
                    )
            self._beside = None

    @property
    def epsilon(self) -> float:
        """Of the steps so far."""
        spent = Spent(self.privacy.noise, self.privacy.rate, self.steps)
        return epsilon_of([spent], self.asked.delta, self.asked.accountant)

    def finish(self, run: Run) -> None:
        say(f"privacy: {self.steps} steps come to epsilon {self.epsilon:.3g} at delta {self.asked.delta:g}")
        run.summary[STARTED] = {
            **_settings(self.asked),
            "rows": round(self.privacy.rows / self.privacy.rate),
            **spent_of(self.privacy, self.steps, self.epsilon),
        }

    def state_dict(self) -> Mapping[str, object]:
        return {"secret": str(self.privacy.secret.number), "steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.privacy.secret.number, self.steps = int(state["secret"]), int(state["steps"])


def spent_of(privacy: Privacy, steps: int, epsilon: float) -> dict[str, Json]:
    """What result.json says of steps that were alike."""
    return {"noise": privacy.noise, "sample_rate": privacy.rate, "steps": steps, "epsilon": epsilon}


def record_of(recipe: Recipe) -> dict[str, Json]:
    """What result.json says of the settings."""
    return _settings(_asked(recipe))


def secret_of(recipe: Recipe) -> Secret:
    """The recipe's, or one that is drawn when it is first asked for."""
    return Secret(None if recipe.privacy is None else recipe.privacy.seed)


def _settings(asked: PrivacySection) -> dict[str, Json]:
    return {"unit": "row", "clip": asked.clip, "delta": asked.delta, "accountant": asked.accountant}


def _asked(recipe: Recipe) -> PrivacySection:
    assert recipe.privacy is not None, "a private recipe"
    return recipe.privacy


def _frozen(run: Run) -> dict[str, torch.Tensor]:
    trains = {info.param.data_ptr() for info in run.parameters}
    return {
        name: value for name, value in trained_tensors(run.model).items() if value.data_ptr() not in trains
    }


@lru_cache(maxsize=1024)
def _noise(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    return noise_for(epsilon, delta, rate, steps, accountant)
