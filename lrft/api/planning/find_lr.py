"""`lrft find-lr`: the range test of a recipe's learning rate. Nothing of it is kept but what is returned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.api.planning.rate_plot import Plot
from lrft.api.training.memory import memory_advice
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.job import Job, assemble
from lrft.build.recomputing import settle
from lrft.build.steps import drawing, train_data
from lrft.build.text import check_text
from lrft.core import stop
from lrft.core.analysis import Analysis
from lrft.core.callback import TimedMethod
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.subject import Progress, silent
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.recipe.scores import LOSS
from lrft.recipe.sections import LoggingSection
from lrft.registry.errors import NumericalError, RecipeError, UsageError
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.keepers import LossScale
from lrft.training.loop import train_steps
from lrft.training.numerics import numerics
from lrft.training.rate_choice import Choice, choose_rate
from lrft.training.rate_sweep import RateSweep, SweepOver

if TYPE_CHECKING:
    from accelerate import Accelerator

FEWEST = 20  # steps whose losses say something
PLANNED = (
    10  # times the steps of the test: what methods that count steps take for the length of the run, or more
)


class Found(Choice):
    """The rate that is suggested, and every loss that it follows from."""

    recipe: str
    rates: list[float]
    losses: list[float]


def find_lr(
    recipe: LoadedRecipe | Path | str,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    plot: Path | None = None,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
) -> Found:
    """Train a recipe for a few steps at rising rates, and say which rate its losses suggest.

    The rate rises by the same factor every step. The test ends at `high` or where the loss blows up, whichever is
    first, and leaves no run.

    Args:
        low, high: the first rate and the last.
        steps: how many are tried between them.
        plot: a file for a picture of rates and losses.
        overrides: `key.sub=value` sets, `~key.sub` deletes; of a recipe that is not loaded yet.

    Raises:
        RecipeError, DataError: what training would raise before its first step.
        UsageError: the rates do not rise, or are too few; or the picture cannot be written there.
        NumericalError: the loss is no finite number before any rate has done anything.
    """
    with stop.listening("nothing is kept of a test that was not finished; the same command begins it again"):
        return _find_lr(recipe, low, high, steps, plot, trust_remote_code, overrides)


def _find_lr(
    recipe: LoadedRecipe | Path | str,
    low: float,
    high: float,
    steps: int,
    plot: Path | None,
    trust_remote_code: bool,
    overrides: Sequence[str],
) -> Found:
    if not 0 < low < high < float("inf"):
        raise UsageError(f"--from {low:g} --to {high:g}: rates have to rise from above 0")
    if steps < FEWEST:
        raise UsageError(f"--steps {steps}: too few to say anything; give at least {FEWEST}")
    picture = None if plot is None else Plot(plot)
    loaded = as_loaded(recipe, overrides)
    if loaded.recipe.federate is not None:
        raise RecipeError(
            "a rate is found for one training; write federate=null beside the recipe", "federate"
        )
    if loaded.recipe.privacy is not None:
        message = (
            "the steps of the test look at rows that nobody accounts for; write privacy=null and other rows"
        )
        raise RecipeError(message, "privacy")
    changed = for_sweep(loaded.recipe, steps)
    settings = changed.train
    with numerics(settings.deterministic, settings.tf32), memory_advice(changed, trust_remote_code):
        accelerator = make_accelerator(settings.device, changed.model.dtype)
        lead = accelerator.is_main_process
        with EvaluationBar() as show:
            job = _prepare(changed, accelerator, show if lead else silent, trust_remote_code)
        with EvaluationBar(unit="steps") as show:
            sweep = RateSweep(low, high, steps, changed.optimizer.lr, show if lead else silent)
            _sweep(job, sweep)
    found: Found = {
        "recipe": loaded.name,
        **choose_rate(sweep.rates, sweep.losses, steps, sweep.blown),
        "rates": sweep.rates,
        "losses": sweep.losses,
    }
    if picture is not None and lead:
        with stop.held():
            picture.draw(found)
    return found


def for_sweep(recipe: Recipe, steps: int) -> Recipe:
    """The recipe as the test trains it: long enough, with nothing scored, tracked or ended early."""
    train = {
        "max_steps": max(recipe.train.max_steps or 0, PLANNED * steps),
        "metric": LOSS,
        **dict.fromkeys(("epochs", "eval_every", "eval_tasks_every", "stop_below", "patience")),
    }
    sections = {
        "train": recipe.train.model_copy(update=train),
        "data": recipe.data.model_copy(update={"eval": None}),
        "logging": LoggingSection(),
        "analyse": [],
    }
    return recipe.model_copy(update=sections)


def _prepare(recipe: Recipe, accelerator: Accelerator, progress: Progress, trusted: bool) -> Job:
    """What a training would have before its first step, without a folder."""
    if drawing(recipe) is not None:
        message = (
            "has a loss that does not say how good answers are, so no rate is found by it; write optimizer.lr"
        )
        raise RecipeError(message, "objective.method")
    text = read_text(recipe, trust_remote_code=trusted, progress=progress)
    check_text(text, recipe)
    device = accelerator.device
    if recipe.offload.parts:
        say("offload: is of training; the whole model is held here")
    adaptation = adapt(recipe, device=device, trust_remote_code=trusted, text=text, progress=progress)
    processes, rank = accelerator.num_processes, accelerator.process_index
    data = train_data(recipe, text, processes, rank, adaptation.packing, adaptation.joined)
    settle(recipe, adaptation, data, device, None, trusted)
    nowhere = RunFolder(Path("find-lr"))  # nothing is read from it or written to it
    job = assemble(recipe, nowhere, text, adaptation, accelerator, recipe_hash(recipe), trusted)
    job.run.folder = None
    return job


def _sweep(job: Job, sweep: RateSweep) -> None:
    """Train until the sweep is over. Methods that act over time do so as in the first steps of a long run.

    Raises:
        NumericalError: at the first step, which no rate has touched.
    """
    run = job.run
    kept = (
        c for c in run.callbacks if isinstance(c, TimedMethod | LossScale) and not isinstance(c, Analysis)
    )
    run.callbacks = [*kept, sweep]
    try:
        with closing(job.steps()) as steps:
            train_steps(run, steps, job.objective)
    except SweepOver:
        return
    except NumericalError:
        if not sweep.rates:
            raise
        sweep.blown = True
    finally:
        for callback in run.callbacks:
            callback.close()
