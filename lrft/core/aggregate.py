"""`Aggregator`: what clients of a federation send, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.params import ParamInfo
from lrft.registry.config import MethodConfig

Tensors = dict[str, Tensor]
"""Tensors by the names of the parameters that train, or whatever else a message is made of."""


@dataclass(frozen=True)
class Federation:
    """Who takes part.

    Attributes:
        clients: how many there are.
        chosen: how many of them train in a round.
        seed: of everything that is drawn.
    """

    clients: int
    chosen: int
    seed: int


@dataclass(frozen=True)
class Turn:
    """One client in one round, both counted from 0."""

    client: int
    round: int


@dataclass(frozen=True)
class Reply:
    """What a client sent back.

    Attributes:
        client: which.
        examples: rows of data that it holds.
        message: tensors, as `Aggregator.up` made them.
    """

    client: int
    examples: int
    message: Mapping[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Where a model is cut, and what hides what crosses.

    Attributes:
        head, tail: blocks at its beginning and at its end that a client holds; the others are the server's.
        eta: of the noise on hidden states that go up (`lrft.ops.metric_noise`); None for none.
    """

    head: int
    tail: int
    eta: float | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a client's round.

    Attributes:
        epochs: passes over its rows; None: as long as the recipe says of a round.
        bypass: of a split model, the server's part is left out.
        keep: share of the rows that it trains on, those of largest `Aggregator.error` with the server's part left out.
    """

    epochs: float | None = None
    bypass: bool = False
    keep: float = 1.0


class Aggregator:
    """The rule of a federation: three messages and one sum.

    A round: the server sends `down`; every client chosen begins with `taken`, trains, and sends `up`; the server makes
    `aggregate` of the replies, which come in the order of the clients. All follows from the arguments and the state, so
    a round that was cut off is the same when it is begun again.

    Args:
        parameters: everything that trains, with roles; values are not looked at.

    Class attributes:
        provides, requires: traits (`lrft.registry.traits`), asked of the recipe's other parts.
        to_all: clients keep the model. `down` is sent to all of them at the end of a round, and each makes the server's
            model of what it held, by `taken`; else it is sent to the chosen ones when a round begins.

    Attributes:
        split: where the model is cut between client and server; None where a client holds all of it.
        phases: what a client does in a round, in order.

    Raises:
        ValueError: it cannot average these parameters; the message says which and what would work.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    to_all: ClassVar[bool] = False

    config: Any  # its own `Config`
    split: Split | None = None
    phases: tuple[Phase, ...] = (Phase(),)

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        self.config, self.federation, self.parameters = config, federation, tuple(parameters)

    def down(self, held: Mapping[str, Tensor], turn: Turn) -> Tensors:
        """What the server, whose model is `held`, sends to a client; by default everything that trains."""
        return dict(held)

    def taken(self, message: Mapping[str, Tensor], before: Mapping[str, Tensor], turn: Turn) -> Tensors:
        """The model that a client makes of a message; `before` is the one that it held, where clients keep it."""
        return dict(message)

    def up(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], turn: Turn) -> Tensors:
        """What a client that began with `start` sends back; by default everything that trained."""
        return dict(trained)

    def check(self, held: Mapping[str, Tensor], reply: Reply, round: int) -> None:
        """Look at a reply that came from elsewhere, before it is summed: `up` makes such a message, of finite numbers.

        Raises:
            ValueError: it does not; the message says what is odd.
        """
        turn = Turn(reply.client, round)
        start = dict(held) if self.to_all else self.taken(self.down(held, turn), held, turn)
        check_alike(reply, self.up(start, start, turn))

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        """The server's model after a round."""
        raise NotImplementedError(f"{type(self).__name__} declares no aggregate")

    def error(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How wrong each target is predicted, (N, V) float32 and (N,) -> (N,); asked where a phase keeps a share."""
        raise NotImplementedError(f"{type(self).__name__} declares no error")

    def shares(self, replies: Sequence[Reply]) -> list[float]:
        """The weight of each reply, together 1: by its rows where the settings have `weights: examples`, else alike."""
        if getattr(self.config, "weights", "equal") == "equal":
            return [1 / len(replies)] * len(replies)
        total = sum(reply.examples for reply in replies)
        return [reply.examples / total for reply in replies]

    def state_dict(self) -> StateDict:
        """Tensors and plain values that the next round needs."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Take them back."""

    def pairs(self) -> Iterator[tuple[str, str, float]]:
        """The names of A (r, in) and B (out, r) of every site that trains both, and the scale s of s B A."""
        sites: dict[str, dict[str, ParamInfo]] = {}
        for info in self.parameters:
            sites.setdefault(info.site, {})[info.role] = info
        for roles in sites.values():
            if {"lora_A", "lora_B"} <= roles.keys():
                yield roles["lora_A"].name, roles["lora_B"].name, roles["lora_A"].scaling


def check_alike(reply: Reply, expected: Mapping[str, Tensor], shapes: bool = True) -> None:
    """Whether a reply has the names, types and, with `shapes`, the shapes that are expected, finite numbers, and rows.

    Raises:
        ValueError: says what it has.
    """
    if reply.examples < 1:
        raise ValueError(f"it says that it holds {reply.examples} rows")
    check_tensors(reply.message, expected, shapes)


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], shapes: bool = True) -> None:
    """The same of tensors: a message, or what a checkpoint says that a server keeps.

    Raises:
        ValueError: says which is odd, and how.
    """
    if odd := sorted(given.keys() ^ expected.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'of nothing that is averaged'}")
    for name, wanted in expected.items():
        value = given[name]
        if value.dtype != wanted.dtype or (shapes and value.shape != wanted.shape):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} of {value.dtype}, and averaged is {tuple(wanted.shape)} of "
                f"{wanted.dtype}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def bytes_of(message: Mapping[str, Tensor]) -> int:
    """Bytes of a message: its numbers, without their names."""
    return sum(value.numel() * value.element_size() for value in message.values())


def mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """sum_k p_k x_k in float32, in the order given; of equal shares the mean of a stack, as authors form it."""
    if len(set(shares)) == 1:
        return torch.stack([value.float() for value in values]).mean(0)
    total = torch.zeros_like(values[0], dtype=torch.float32)
    for value, share in zip(values, shares, strict=True):
        total += share * value.float()
    return total
