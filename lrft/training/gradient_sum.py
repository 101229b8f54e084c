"""The sum of the gradients over processes, begun while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

BUCKET_BYTES = (
    25 * 2**20
)  # of float32: large enough to be worth a message, small enough that the first goes early


class GradientSum:
    """Gives every parameter the sum of its gradients over all processes; one without a micro-batch adds zeros.

    What has a gradient on no process keeps none: an optimizer would move it by momentum and decay.

    Buckets go by the reverse of the parameters' order in the model, which is about the order in which a backward pass
    is done with them. All processes make the same buckets and send them in the same order, each as soon as it is
    complete and those before it are gone; so the sums are the same bits in every repetition of a run.

    Args:
        parameters: those that train in this step, alike on all processes.
        bucket_bytes: the least that is sent at once, the last bucket apart.
        overlap: send during the backward pass; else all is sent after it.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES, overlap: bool = True
    ) -> None:
        self.buckets = [_Bucket(part) for part in _parts(parameters, bucket_bytes)]
        self.overlap = overlap
        self.sent = 0

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """Send what becomes complete meanwhile: around the last backward pass of a step, and no other."""
        place = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}

        def arrived(parameter: Tensor) -> None:
            bucket = place[id(parameter)]
            assert bucket.work is None, "a gradient grew after it was sent"
            bucket.awaited.discard(id(parameter))
            while self.sent < len(self.buckets) and not self.buckets[self.sent].awaited:
                self._send_next()

        every = [parameter for bucket in self.buckets for parameter in bucket.parameters if self.overlap]
        hooks = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in every]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Send what is left, wait for all, and leave the sums as the parameters' gradients."""
        while self.sent < len(self.buckets):
            self._send_next()
        for bucket in self.buckets:
            bucket.receive()

    def _send_next(self) -> None:
        self.buckets[self.sent].send()
        self.sent += 1


class _Bucket:
    """Gradients that are sent in one message, in float32, and behind them how many processes have each."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.awaited = {id(parameter) for parameter in parameters}
        self.sizes = [parameter.numel() for parameter in parameters]
        self.work: distributed.Work | None = None
        self.flat = torch.empty(0)

    def send(self) -> None:
        device = self.parameters[0].device
        self.flat = torch.empty(sum(self.sizes) + len(self.sizes), device=device)
        *parts, counts = self._split()
        counts.fill_(1)
        for index, (parameter, part) in enumerate(zip(self.parameters, parts, strict=True)):
            if parameter.grad is None:
                part.zero_()
                counts[index] = 0
            else:
                part.view_as(parameter).copy_(parameter.grad)
        self.work = _begin_sum(self.flat)

    def receive(self) -> None:
        assert self.work is not None, "received before it was sent"
        self.work.wait()
        *sums, counts = self._split()
        # Only a process that misses one has to wait for the device to learn whether another has it.
        mine = [parameter.grad is not None for parameter in self.parameters]
        anywhere = mine if all(mine) else (counts > 0).tolist()
        for parameter, part, found in zip(self.parameters, sums, anywhere, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if found else None

    def _split(self) -> tuple[Tensor, ...]:
        return torch.split(self.flat, [*self.sizes, len(self.sizes)])


def _parts(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    held: list[nn.Parameter] = []
    for parameter in reversed(parameters):
        held.append(parameter)
        if torch.float32.itemsize * sum(other.numel() for other in held) >= bucket_bytes:
            yield held
            held = []
    if held:
        yield held


def _begin_sum(flat: Tensor) -> distributed.Work:
    work: distributed.Work = distributed.all_reduce(flat, async_op=True)
    return work
