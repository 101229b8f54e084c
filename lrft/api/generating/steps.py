"""The steps of a fit: saved on the way, drawn from seed and step, the same however often it was killed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lrft.api.generating.folder import Opened, Summary, resume_optimizer, write_generator
from lrft.core import stop
from lrft.core.generate import Generator, Known
from lrft.evaluation.subject import Progress
from lrft.registry.errors import NumericalError
from lrft.registry.json import Json

SECONDS = 30.0  # between two savings


def train(
    path: Path,
    generator: Generator,
    known: Sequence[Known],
    record: dict[str, Json],
    seed: int,
    begun: Opened | None,
    show: Progress,
) -> float | None:
    """All steps that are left, saved every `SECONDS`, where a signal asks to stop, and at the end; the last loss."""
    summary, steps = _summary(known, generator), generator.steps(known)
    record["steps"] = steps
    optimizer = generator.optimizer() if steps else None
    step = 0 if begun is None else int(begun.record["step"])
    if begun is not None and optimizer is not None:
        resume_optimizer(path, optimizer, generator)
    rates = [] if optimizer is None else [group["lr"] for group in generator.optimizer().param_groups]
    loss, saved, anew = None, time.monotonic(), begun is None
    generator.train()
    while optimizer is not None and step < steps:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * generator.rate(step, steps)
        loss = _step(generator, optimizer, known, draws_of(seed, step), step)
        step += 1
        show("fitting", step, steps)
        if step < steps and (stop.wanted() or time.monotonic() - saved >= SECONDS):
            record["step"] = step
            with stop.held():
                write_generator(path, generator, summary, record, optimizer, anew)
            saved, anew = time.monotonic(), False
            stop.poll()
    generator.eval()
    record["step"] = step
    with stop.held():
        write_generator(path, generator, summary, record, None, anew)
    return loss


def _step(
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    known: Sequence[Known],
    draws: torch.Generator,
    step: int,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = generator.loss(known, draws)
    if not math.isfinite(value := float(loss.detach())):
        raise NumericalError(
            f"step {step + 1}: the loss of the generator is {value}; fit it with a smaller lr"
        )
    loss.backward()
    if generator.most is not None:
        torch.nn.utils.clip_grad_norm_(generator.parameters(), generator.most)
    optimizer.step()
    return value


def draws_of(seed: int, step: int) -> torch.Generator:
    """What one step draws from; a fit that is gone on with draws the same."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _summary(known: Sequence[Known], generator: Generator) -> Summary:
    mean = torch.stack([one.samples.double().mean(0) for one in known]).mean(0).float()
    parts = torch.cat([one.samples for one in known]).double().split(generator.sizes.layout.lengths, dim=1)
    centres = torch.stack([part.mean() for part in parts]).float()
    return Summary(mean, centres, torch.stack([part.std(correction=0) for part in parts]).float())
