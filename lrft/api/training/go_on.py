"""A training brought to where a checkpoint left it."""

from __future__ import annotations

from torch import Tensor

from lrft.api.opening.same_start import tell_versions
from lrft.build.expected_state import expected_state
from lrft.build.job import Job
from lrft.core.notes import say
from lrft.model.trained import load_trained_tensors, trained_tensors
from lrft.training import checkpoint, schedule
from lrft.training.opened import OpenCheckpoint
from lrft.training.replayed import is_record, replay


def go_on(job: Job, saved: OpenCheckpoint, tensors: dict[str, Tensor]) -> None:
    """Give the job the tensors and the state of a checkpoint that verifies; says from which step it goes on.

    Raises:
        CheckpointError: it is of another base model, or its parameters are not those of the job.
    """
    checkpoint.check_identity(saved, job.identity)
    tell_versions(job.folder, saved, job.run.device)
    if is_record(saved):
        replay(job.run.optimizer, saved, trained_tensors(job.adaptation.model))
    else:
        load_trained_tensors(job.adaptation.model, tensors)
    checkpoint.restore(job.run, saved, expected_state(job.run.recipe, job.run.parameters))
    saved.close()
    if job.folder.day is None:
        say(
            "this run began with an earlier version, which encoded some rows and drew dropout otherwise; the steps "
            "from here on are not those that it would have taken"
        )
    say(f"resuming after step {job.run.step} of {job.run.total_steps}")
    if job.run.earlier_ends:
        job.run.schedule.refresh()
        say(
            schedule.tell(job.run.schedule.rate, job.run.recipe, [*job.run.earlier_ends, job.run.total_steps])
        )
