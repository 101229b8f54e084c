"""The training loop, in the order of the algorithm. Everything else is a callback."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import cast

from torch import Tensor

from lrft.core.objective import Objective
from lrft.core.optimizer import contract_of, lead
from lrft.core.run import Run
from lrft.core.settling import settle
from lrft.core.stop import sentence
from lrft.model import heap
from lrft.registry.errors import Interrupted, NumericalError
from lrft.training.diagnose import first_non_finite
from lrft.training.private import private_loss
from lrft.training.step import (
    StepBatches,
    clip_gradients,
    overflowed,
    read_numbers,
    step_loss,
    unscale_gradients,
)


def train_steps(run: Run, steps: Iterable[StepBatches], objective: Objective) -> Run:
    """One optimizer step per element of `steps`; callbacks may change anything that `run` holds.

    Raises:
        NumericalError: a loss or gradient is not finite; the weights were not touched by that step.
        Interrupted: a signal asked to stop and the step was finished and saved.
    """
    run.model.train()
    run.fire("start")
    for batches in steps:
        if run.step >= run.total_steps:  # a callback made the step before the last one
            break
        _take(run, batches)
        # With a backward pass where there is one.
        run.closure = partial(private_loss if run.privacy else step_loss, run, batches, objective)
        run.fire("before_step")
        if contract_of(run.optimizer).calls_closure:
            loss, norm = _move_by_losses(run, batches, objective)
        else:
            loss, norm = _move_by_gradients(run, batches, objective)
        run.step += 1
        run.record(loss=loss, grad_norm=norm, lr=run.optimizer.param_groups[0]["lr"])
        run.schedule.step()
        run.fire("after_step")  # gradients are still here
        run.optimizer.zero_grad(set_to_none=True)
        if run.step % heap.EVERY == 0:
            heap.give_back()
        _stop_if_asked(run)  # after the last step too, whose scores may be owed
    run.fire("finish")
    return run


def _move_by_losses(run: Run, batches: StepBatches, objective: Objective) -> tuple[float, float]:
    """The loss, and no norm: zeroth-order methods have no gradients, and decide how often the loss is computed."""
    run.model.eval()  # two losses are compared, so dropout must not differ between them
    loss, norm = read_numbers(cast(Tensor, run.optimizer.step(run.closure)))  # type: ignore[arg-type]
    run.model.train()
    if not math.isfinite(loss):
        raise NumericalError(first_non_finite(run, batches, objective, loss, norm))
    settle(run.settling, run.optimizer)
    return loss, norm


def _move_by_gradients(run: Run, batches: StepBatches, objective: Objective) -> tuple[float, float]:
    """The loss and the norm of its gradients, whose update is left out where float16 overflowed."""
    assert run.closure is not None, "set before the step"
    lead(run.optimizer)
    total = run.closure()
    unscale_gradients(run)  # float16 only
    run.fire("after_backward")  # gradients are complete and unclipped
    # The one wait for the device in a step: weights must not be touched by a number that is none.
    loss, norm = read_numbers(total, clip_gradients(run))
    if math.isfinite(loss) and math.isfinite(norm):
        run.optimizer.step()
        settle(run.settling, run.optimizer)
    elif not overflowed(run, loss):
        raise NumericalError(first_non_finite(run, batches, objective, loss, norm))
    return loss, norm


def _take(run: Run, batches: StepBatches) -> None:
    """Let the run hold the rows of its next step, and draw by its seed."""
    run.metrics = {}
    run.micro_batches = batches.micro_batches
    run.rows = tuple(row for batch in run.micro_batches for row in batch.examples)
    run.seed_step()


def _stop_if_asked(run: Run) -> None:
    """Raise `Interrupted` where the step just saved is to be the last."""
    if run.stopping and run.stop_signal is not None:
        kept = f"stopped after step {run.step} of {run.total_steps}, which is saved; add --resume to go on"
        raise Interrupted(run.stop_signal, sentence(run.stop_signal, kept))
