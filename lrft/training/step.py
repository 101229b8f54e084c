"""One step's loss and gradients: micro-batches, processes and the division by the step's tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.notes import say
from lrft.core.objective import Objective
from lrft.core.optimizer import Optimizer, contract_of, rejoin
from lrft.core.run import Run
from lrft.ops.compiled import FAILURES, compiling
from lrft.ops.native import using
from lrft.training.gradient_sum import GradientSum


class StepBatches(Protocol):
    """What one optimizer step is made of, seen from one process."""

    @property
    def micro_batches(self) -> Sequence[Batch]:
        """This process's share; of processes that go in step, with one beyond the step's where others have one more."""

    @property
    def micro_batch_count(self) -> int:
        """How many the whole step has, over all processes; some may have fewer than others, or none."""

    @property
    def targets(self) -> int:
        """Target tokens of the whole step, over all micro-batches and processes."""

    @property
    def examples(self) -> int:
        """Rows of the data, likewise."""

    @property
    def tokens(self) -> int:
        """Real tokens, likewise."""

    @property
    def epoch(self) -> float:
        """How far through the data the step ends."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What else is known of the whole step before it is computed."""


def step_loss(run: Run, batches: StepBatches, objective: Objective) -> Tensor:
    """Mean loss of the whole step, per target token or as the objective says, with gradients if they are on.

    The summed loss of each micro-batch is divided by the objective's divisor of the step, so eight micro-batches of one
    row, one of eight rows, packed rows and two processes all give the same loss and gradients.
    """
    total = torch.zeros((), device=run.device)
    penalized = run.penalized
    share = 1.0 / batches.micro_batch_count
    divisor = objective.divisor(batches)
    objective.whole_step(run, batches, partial(_passes, run, batches))
    gradients = _gradient_sum(run)
    for index, micro_batch in enumerate(batches.micro_batches):
        stop.poll()  # of a trial that keeps nothing; a training finishes its step
        place = index * run.processes + run.rank
        counts = place < batches.micro_batch_count  # one beyond is there to go in step, and adds zeros
        with _drawn(run, micro_batch, place, counts):
            loss = objective(run.model, micro_batch.to(run.device), run) / divisor
            total += loss.detach() if counts else 0
            for part in penalized:
                penalty = part.penalty()
                loss = loss if penalty is None else loss + penalty * share
            if torch.is_grad_enabled():
                loss = loss if run.scaler is None else run.scaler.scale(loss)
                is_last = index == len(batches.micro_batches) - 1
                with gradients.overlapped() if gradients is not None and is_last else nullcontext():
                    (loss if counts else 0 * loss).backward()
    if run.team.in_step:
        run.team.largest(0)  # all have gathered the same weights
    run.seed_draws(batches.micro_batch_count)  # what draws from here on draws alike on every process
    run.record(tokens=batches.tokens, targets=batches.targets, epoch=batches.epoch, **batches.metrics)
    if run.compiled and FAILURES:
        run.compiled = False
        say(f"step {run.step + 1}: norms, gates and rotations are no longer compiled ({FAILURES[0]})")
    if gradients is not None:
        gradients.finish()
    return run.summed(total)


@contextmanager
def _drawn(run: Run, micro_batch: Batch, place: int, counts: bool) -> Iterator[None]:
    """Compute a micro-batch with the draws of its place in the step."""
    run.seed_draws(place)
    done = run.step / run.planned_steps
    with (
        computing(micro_batch, run.seed_of_draws(place), counts=counts, done=done),
        compiling(run.compiled),
        using(run.kernels),
    ):
        yield


def _passes(run: Run, batches: StepBatches) -> Iterator[tuple[Batch, bool]]:
    """The micro-batches as they will be computed, for an objective that looks at all of them before."""
    for index, micro_batch in enumerate(batches.micro_batches):
        stop.poll()
        place = index * run.processes + run.rank
        with _drawn(run, micro_batch, place, counts=False):
            yield micro_batch.to(run.device), place < batches.micro_batch_count


def unscale_gradients(run: Run) -> None:
    """Divide the gradients by the loss scale, where float16 needs one, and let the scale follow what came."""
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
        run.scaler.update()


def overflowed(run: Run, loss: float) -> bool:
    """Whether a non-finite gradient is float16's overflow: the update is skipped, the scale was halved already.

    With a scale of one or less, or a loss that is itself no number, it is a fault like in any other precision.
    """
    if run.scaler is None or not math.isfinite(loss) or run.scaler.get_scale() < 1:
        return False
    rejoin(run.optimizer)
    run.record(skipped=1)
    return True


def read_numbers(loss: Tensor, norm: Tensor | None = None) -> tuple[float, float]:
    """Loss and gradient norm of a step on the host, by one read of the device; the norm is 0 where there is none."""
    if norm is None:
        return float(loss), 0.0
    first, second = torch.stack((loss.float(), norm.float())).tolist()
    return first, second


def clip_gradients(run: Run) -> Tensor | None:
    """Global L2 norm of all gradients before clipping, 0-d on their device; clipped in place when `run.clip` is set.

    Nothing waits for the device. Gradients that a per-layer optimizer has already consumed are absent and count
    nothing; None where there are none at all.
    """
    optimizer = contract_of(run.optimizer)
    if isinstance(optimizer, Optimizer) and optimizer.consumes_gradients:
        return optimizer.take_norm()
    grads = [info.param.grad for info in run.parameters if info.param.grad is not None]
    if not grads:
        return None
    norm = torch.nn.utils.get_total_norm(grads)
    if run.clip is not None:
        torch.nn.utils.clip_grads_with_norm_([i.param for i in run.parameters], run.clip, norm)
    return norm


def _gradient_sum(run: Run) -> GradientSum | None:
    """What adds the gradients of all processes; None where there is one, or no gradient is asked for."""
    if run.processes == 1 or not torch.is_grad_enabled():
        return None
    parameters = [info.param for info in run.parameters if info.param.requires_grad]
    # Weights are gathered in the backward pass too, and two kinds of messages could meet in another order elsewhere.
    return GradientSum(parameters, overlap=not run.team.in_step)
