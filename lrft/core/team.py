"""`Team`: the processes that work on one thing together, and what they tell one another."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed

from lrft.registry.errors import RecipeError

T = TypeVar("T")


class Order:
    """In which order the frozen maps were asked for their weight, as one number.

    Two processes that ask in different orders would put parts of different weights together, where these have the same
    size without anybody noticing.
    """

    def __init__(self) -> None:
        self.trace = 0

    def note(self, index: int) -> None:
        """Map `index` was asked."""
        self.trace = zlib.crc32(index.to_bytes(8, "little"), self.trace)


class Accelerator(Protocol):
    """What is asked of accelerate's object of that name."""

    @property
    def num_processes(self) -> int:
        """How many processes train together."""

    @property
    def process_index(self) -> int:
        """Which of them this one is."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum (`sum`) or the mean over the processes."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Those of all processes, one after the other."""

    def wait_for_everyone(self) -> None:
        """Go on once all processes have come here."""


@dataclass(frozen=True)
class Team:
    """Of a process that nobody launched with others, a team of one.

    Attributes:
        rank: index of this process.
        size: how many there are.
        device: where what they send has to be.
        order: of processes that go in step, see there; None of others.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    order: Order | None = None

    @classmethod
    def joined(cls, device: torch.device | str, in_step: bool = False) -> Team:
        """The processes that joined this launch.

        Args:
            in_step: a forward pass takes all of them, as where each holds a part of every weight.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(device=device)
        size = distributed.get_world_size()
        order = Order() if in_step and size > 1 else None
        return cls(distributed.get_rank(), size, device, order)

    @property
    def in_step(self) -> bool:
        """Whether a forward or backward pass of one process waits for all: every one makes as many."""
        return self.order is not None

    def largest(self, number: int) -> int:
        """The largest of what each process gives; all have to ask.

        Raises:
            RecipeError: they go in step, and did not ask the same weights of one another.
        """
        if self.size == 1:
            return number
        trace = 0 if self.order is None else self.order.trace
        sent = torch.tensor([number, trace, -trace], device=self.device)
        distributed.all_reduce(sent, distributed.ReduceOp.MAX)
        found, last, first = sent.tolist()
        if last != -first:
            raise RecipeError(
                "the processes used the layers in different orders, so their parts do not fit together; write false",
                "train.shard_base",
            )
        return int(found)

    def gather(self, mine: T) -> list[T]:
        """What each process gives, in the order of their ranks; all have to give something that pickles."""
        if self.size == 1:
            return [mine]
        found: list[T] = [mine] * self.size
        distributed.all_gather_object(found, mine)
        return found


ALONE = Team()
