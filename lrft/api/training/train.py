"""`lrft train`: a recipe to its end in a run folder, from the start or from where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.api.opening.room import check_disk
from lrft.api.training.begin import begin, rows_of
from lrft.api.training.claim import claim
from lrft.api.training.go_on import go_on
from lrft.api.training.memory import memory_advice
from lrft.api.training.recorded import finished, to_train
from lrft.api.training.resumable import checkpoint_to_resume
from lrft.api.training.run_record import Took, write_end, write_start
from lrft.api.training.scores import score_at_end
from lrft.build.guess import with_format
from lrft.build.job import Job
from lrft.build.offloading import offloading
from lrft.build.rounds import MakeReach
from lrft.core import stop
from lrft.core.notes import say
from lrft.core.plain import plain
from lrft.recipe.inside_sections import Extension
from lrft.recipe.load import LoadedRecipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training import checkpoint_folder
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.launcher import as_launched
from lrft.training.loop import train_steps
from lrft.training.metrics import forget_peak_memory, peak_memory
from lrft.training.numerics import numerics
from lrft.training.opened import OpenCheckpoint
from lrft.training.profile import Profile
from lrft.training.trackers.tracker import Tracker, trackers_of

if TYPE_CHECKING:
    from accelerate import Accelerator

NOT_BEGUN = "nothing was trained yet; the same command begins it"


def train(
    recipe: LoadedRecipe | Path | str,
    out: Path | str | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
    profile: bool = False,
    added: Extension | None = None,
    reach: MakeReach | None = None,
) -> dict[str, Json]:
    """Train a recipe to its end in a run folder and write the adapter; returns what result.json holds.

    Args:
        recipe: a loaded one, a file, or the name of a packaged one; with `resume` also a run folder, whose own recipe
            is then meant.
        out: the run folder; by default a new one under runs/, or with `resume` the latest of this recipe.
        resume: go on with the run that is there.
        trust_remote_code: let code run that comes with the base model; a resume is asked anew.
        overrides: `key.sub=value` sets, `~key.sub` deletes; of a recipe that is not loaded yet.
        profile: record a few steps, write `profile/` into the run folder and return what was found under `profile`.
        added: steps to add to the finished run that `recipe` names.
        reach: of a federation, makes what reaches its clients; by default they train here in turn.

    Raises:
        RecipeError: the recipe is not valid.
        UsageError: the folder holds a run and `resume` was not asked for, the recipe changed since, there are too few
            steps to profile, or steps are to be added to what is no finished run.
        WriteError: the disk has no room for the checkpoints, or failed.
        DataError, NumericalError, Interrupted, CheckpointError: see `lrft.registry.errors`.
    """
    with stop.listening(NOT_BEGUN):
        loaded = to_train(recipe, overrides, resume, added)
        if loaded.run is not None:
            out = _the_run(loaded.run, out)
        loaded = as_launched(with_format(loaded))
        settings = loaded.recipe.train
        with numerics(settings.deterministic, settings.tf32):
            accelerator = make_accelerator(settings.device, loaded.recipe.model.dtype)
            lead, more = accelerator.is_main_process, added is not None
            folder = claim(loaded, None if out is None else Path(out), resume, lead, more)
            try:
                with stop.listening(partial(_kept, folder)):
                    return _train_in(folder, loaded, accelerator, trust_remote_code, profile, reach)
            finally:
                folder.unlock()


def _kept(folder: RunFolder) -> str:
    """What somebody who stops before the first step, or between the last one and the scores, is told."""
    if not folder.started:
        return NOT_BEGUN
    saved = checkpoint_folder.steps_in(folder.checkpoints)
    step = f"step {max(map(checkpoint_folder.step_of, saved))} is saved" if saved else "no step was made yet"
    return f"{step} in {folder.path}; add --resume to go on"


def _the_run(run: Path, out: Path | str | None) -> Path:
    if out is not None and Path(out).resolve() != run.resolve():
        raise UsageError(f"--out {out}: a run goes on in its own folder, {run}; leave --out out")
    return run


def _train_in(
    folder: RunFolder,
    loaded: LoadedRecipe,
    accelerator: Accelerator,
    trust_remote_code: bool,
    profile: bool,
    reach: MakeReach | None,
) -> dict[str, Json]:
    recipe, lead = loaded.recipe, accelerator.is_main_process
    if (done := finished(folder, len(recipe.train.extended))) is not None:
        if lead:
            say(f"{folder.path}: already complete at step {done['step']}; nothing to do")
        return done if lead else {}
    if profile and recipe.federate is not None:
        raise UsageError(
            "--profile: looks at the steps of one training; profile the recipe with federate=null"
        )
    began = time.perf_counter()
    text = rows_of(folder, recipe, accelerator, trust_remote_code)
    saved = checkpoint_to_resume(folder, recipe)
    where = folder.path, accelerator.device, accelerator.num_processes, trust_remote_code
    with (
        memory_advice(recipe, trust_remote_code),
        nullcontext() if saved is None else saved,
        offloading(recipe, *where) as away,
    ):
        job, tensors = begin(folder, recipe, text, saved, accelerator, trust_remote_code, away, reach)
        watch = _profile(job, saved) if profile and lead else None
        accelerator.wait_for_everyone()  # all have looked before anything is written
        stop.poll()
        if lead:
            check_disk(job)
            write_start(job, loaded, trust_remote_code)
        if saved is not None and tensors is not None:
            go_on(job, saved, tensors)
        with _tracked(job):
            _go_through(job)
            took = Took(time.perf_counter() - began, peak_memory())
            accelerator.wait_for_everyone()
            score_at_end(job)
    if not lead:
        return {}
    found = {} if watch is None or watch.found is None else {"profile": plain(watch.found)}
    return write_end(job, took) | found


def _go_through(job: Job) -> None:
    """All steps that are left; whatever happens, no thread and no open file stays behind."""
    forget_peak_memory()  # what loading took is over, and says nothing of a step
    try:
        with stop.held(), closing(job.steps()) as steps:  # the loop itself looks after every step
            train_steps(job.run, steps, job.objective)
    finally:
        for callback in job.run.callbacks:
            if not isinstance(callback, Tracker):
                callback.close()


@contextmanager
def _tracked(job: Job) -> Iterator[None]:
    """Trackers are still there when what was trained is scored; however it ends, none stays open."""
    try:
        yield
    finally:
        for tracker in trackers_of(job.run):
            tracker.close()


def _profile(job: Job, saved: OpenCheckpoint | None) -> Profile:
    """The recorder of this sitting's steps, the first of the callbacks so that what the others do is left out.

    Raises:
        UsageError: too few steps are left.
    """
    run = job.run
    done = 0 if saved is None else saved.step
    found = Profile(job.folder.path, run.total_steps - done, run.recipe.model.compile)
    run.callbacks = [found, *run.callbacks]
    return found
