"""One step's loss and gradients: micro-batches, processes and the division by the step's tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.objective import Objective
from lrft.core.optimizer import Optimizer, contract_of
from lrft.core.run import Run
from lrft.ops.compiled import compiling


class StepBatches(Protocol):
    """What one optimizer step is made of, seen from one process."""

    @property
    def micro_batches(self) -> Sequence[Batch]:
        """This process's share."""

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


def step_loss(run: Run, batches: StepBatches, objective: Objective) -> Tensor:
    """Mean loss of the whole step, per target token or as the objective says, with gradients if they are on.

    The summed loss of each micro-batch is divided by the objective's divisor of the step, so eight micro-batches of one
    row, one of eight rows, packed rows and two processes all give the same loss and gradients.
    """
    total = torch.zeros((), device=run.device)
    penalized = run.penalized
    share = 1.0 / batches.micro_batch_count
    divisor = objective.divisor(batches)
    for index, micro_batch in enumerate(batches.micro_batches):
        run.seed_draws(index * run.processes + run.rank)
        with computing(micro_batch), compiling(run.compiled):
            loss = objective(run.model, micro_batch.to(run.device), run) / divisor
            total += loss.detach()
            for part in penalized:
                penalty = part.penalty()
                loss = loss if penalty is None else loss + penalty * share
            if torch.is_grad_enabled():
                (loss if run.scaler is None else run.scaler.scale(loss)).backward()
    run.seed_draws(batches.micro_batch_count)  # what draws from here on draws alike on every process
    run.record(tokens=batches.tokens, targets=batches.targets, epoch=batches.epoch)
    if run.accelerator is not None and run.processes > 1:
        total = run.accelerator.reduce(total, reduction="sum")
        if torch.is_grad_enabled():
            _sum_gradients(run)
    return total


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


def _sum_gradients(run: Run) -> None:
    """Add the gradients of all processes, in one message; a process without a micro-batch adds zeros.

    What has a gradient on no process keeps none: an optimizer would move it by momentum and decay.

    The trainable tensors are few and small, so one flat sum after the backward pass costs less than bucketing
    does, and no wrapper renames the model's parameters.
    """
    assert run.accelerator is not None, "gradients are summed over processes"
    params = [info.param for info in run.parameters if info.param.requires_grad]
    there = torch.tensor([float(p.grad is not None) for p in params], device=run.device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([there, *(part.float().flatten() for part in parts)])
    counts, *sums = run.accelerator.reduce(flat, reduction="sum").split(
        [len(params), *(p.numel() for p in params)]
    )
    # Only a process that misses one has to wait for the device to learn whether another has it.
    anywhere = [True] * len(params) if all(p.grad is not None for p in params) else (counts > 0).tolist()
    for param, part, found in zip(params, sums, anywhere, strict=True):
        param.grad = part.view_as(param).to(param.dtype, copy=True) if found else None
