"""The gradients of a private step: of one row at a time, bounded, summed, and hidden in noise.

    g = (sum over rows i of the step of g_i min(1, C / ||g_i||_2) + sigma C z) / L,  z ~ N(0, I)

with g_i the gradient of the mean loss of row i over all parameters that train, C = `privacy.clip`, sigma the noise, L
the expected rows of a step: those that were drawn are not counted, since their number is not public. All parameters get
noise, also those that no row reached. Sums and noise are float32; the noise is drawn on the CPU, whatever trains where.
A row's gradient is formed by a backward pass of its own, so it is exact for every adapter, whatever its forward does.

Source: Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv 1607.00133, algorithm 1.
Departures: none; rows are drawn as the accounting assumes (`lrft.data.poisson`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.objective import Objective
from lrft.core.privacy import Privacy
from lrft.core.run import Run
from lrft.ops.compiled import compiling
from lrft.ops.draws import seed_generators
from lrft.ops.native import using
from lrft.training.step import StepBatches


@dataclass(frozen=True)
class _Row:
    """A step of one row, as the divisor of an objective sees it."""

    targets: int
    examples: int = 1
    micro_batch_count: int = 1


def private_loss(run: Run, batches: StepBatches, objective: Objective) -> Tensor:
    """Mean over the rows of the step of each row's own loss, 0 where none was drawn; leaves noisy gradients.

    Records the share of rows whose gradient was longer than allowed. Loss and share are of the rows themselves: no
    noise is on them.
    """
    assert run.privacy is not None, "a private run"
    parameters = [info.param for info in run.parameters]
    sums = [torch.zeros_like(param, dtype=torch.float32) for param in parameters]
    total, clipped = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
    rows = batches.micro_batches
    for row in rows:
        stop.poll()
        loss, gradients = _of_row(run, row, objective, parameters)
        total += loss
        clipped += add_clipped(sums, gradients, run.privacy.clip)
        del gradients  # they would be beside those of the next row
    run.seed_draws(0)  # and not their number: what draws from here on would tell it
    noise = run.privacy.secret.generator("noise", run.seed, run.step)
    for param, gradient in zip(parameters, hide(sums, run.privacy, noise), strict=True):
        param.grad = gradient.to(param.dtype)
    count = max(len(rows), 1)
    run.record(tokens=batches.tokens, targets=batches.targets, epoch=batches.epoch, rows=len(rows))
    run.record(clipped=clipped / count)
    return total / count


class PrivateBytes(NamedTuple):
    """What the gradients of a private step take, beside a row's own.

    Attributes:
        sums: of all parameters, 4 bytes a number, from before the first row until there is noise.
        clipping: while the gradients of a row are shortened, beside these and the sums.
        noise: the noisy gradients while they are made, beside the sums; no row's are there any more.
    """

    sums: int
    clipping: int
    noise: int


def sum_bytes(numbers: int) -> int:
    """Bytes of the sums of so many numbers' gradients, which are float32 whatever the parameters are."""
    return 4 * numbers


def private_bytes(parameters: Sequence[Tensor]) -> PrivateBytes:
    """Bytes that `private_loss` takes for gradients of parameters, which may be without storage.

    With P numbers in all, p in the largest tensor and p' in the largest in less than float32, of which there are c
    bytes with C numbers: `sums` 4 P; `clipping` 4 C for the norm, then 4 p, or 8 p' with its float32 copy; `noise`
    4 P, and 4 p for the sum that is about to be divided, then c for gradients in the precision of the parameters.
    """
    coarse = [parameter for parameter in parameters if parameter.dtype != torch.float32]
    copies = [4 * parameter.numel() for parameter in coarse]
    largest = 4 * max((parameter.numel() for parameter in parameters), default=0)
    clipping = max(sum(copies), largest, 2 * max(copies, default=0))
    sums = sum_bytes(sum(parameter.numel() for parameter in parameters))
    noise = sums + max(largest, sum(parameter.nbytes for parameter in coarse))
    return PrivateBytes(sums, clipping, noise)


def add_clipped(sums: Sequence[Tensor], gradients: Sequence[Tensor | None], clip: float) -> Tensor:
    """Add the gradient of one row, shortened to `clip`, to float32 sums; whether it was longer, as 0 or 1."""
    there = [gradient for gradient in gradients if gradient is not None]
    norm = torch.nn.utils.get_total_norm([gradient.float() for gradient in there])
    factor = (clip / norm).clamp(max=1.0)  # of a gradient that is 0: clip / 0 is inf, so 1
    for total, gradient in zip(sums, gradients, strict=True):
        if gradient is not None:
            total.add_(gradient.float() * factor)
    return (norm > clip).float()


def hide(sums: Sequence[Tensor], privacy: Privacy, generator: torch.Generator) -> list[Tensor]:
    """The sums with noise, over the expected rows; draws in the order of the sums."""
    deviation = privacy.noise * privacy.clip
    return [
        (total + deviation * torch.randn(total.shape, generator=generator).to(total.device)) / privacy.rows
        for total in sums
    ]


def _of_row(
    run: Run, row: Batch, objective: Objective, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Loss and gradients of one row by itself, as a step of this row alone would have them.

    What it draws (dropout, noise) follows from the row and not from its place among those of the step: with one row
    more or less the others' gradients are the same, or the sum could move by more than `clip`.
    """
    assert run.privacy is not None, "a private run"
    about = row.input_ids.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    seed = run.privacy.secret.seed("draws", run.seed, run.step, about)
    seed_generators(seed)
    with (
        computing(row, seed, counts=True, done=run.step / run.planned_steps),
        compiling(run.compiled),
        using(run.kernels),
    ):
        divisor = objective.divisor(_Row(len(row.targets)))
        loss = objective(run.model, row.to(run.device), run) / divisor
        # In here too: layers that are computed again ask for the batch again.
        return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)
