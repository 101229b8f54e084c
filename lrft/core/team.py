"""`Team`: the processes that work on one thing together, and what they tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Of a process that nobody launched with others, a team of one.

    Attributes:
        rank: index of this process.
        size: how many there are.
        device: where what they send has to be.
        in_step: a forward pass takes all of them, as where each holds a part of every weight: all make as many.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    in_step: bool = False

    @classmethod
    def joined(cls, device: torch.device, in_step: bool = False) -> Team:
        """The processes that joined this launch."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(device=device)
        size = distributed.get_world_size()
        return cls(distributed.get_rank(), size, device, in_step and size > 1)

    def largest(self, number: int) -> int:
        """The largest of what each process gives; all have to ask."""
        if self.size == 1:
            return number
        sent = torch.tensor([number], device=self.device)
        distributed.all_reduce(sent, distributed.ReduceOp.MAX)
        return int(sent)

    def gather(self, mine: T) -> list[T]:
        """What each process gives, in the order of their ranks; all have to give something that pickles."""
        if self.size == 1:
            return [mine]
        found: list[T] = [mine] * self.size
        distributed.all_gather_object(found, mine)
        return found


ALONE = Team()
