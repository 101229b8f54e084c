"""How a server reaches its clients: in turn on one model here, or whatever else sends messages and brings answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrft.build.clients import Clients
from lrft.core import stop
from lrft.core.aggregate import Aggregator, Reply, Tensors, Turn, bytes_of
from lrft.model.trained import trained_tensors
from lrft.registry.errors import Interrupted, NumericalError


@dataclass(frozen=True)
class Numbers:
    """What a client tells of its steps in a round.

    Attributes:
        loss: mean over its steps.
        tokens, targets: of all of them.
        lr: rate of the last.
        link_up, link_down: bytes between the parts of a split model.
    """

    loss: float
    tokens: int
    targets: int
    lr: float
    link_up: int = 0
    link_down: int = 0


@dataclass(frozen=True)
class Answer:
    """A client's reply, and what is known beside it.

    Attributes:
        trained: what it ended with; None where only its message is known.
        down: bytes that it was sent for it.
    """

    reply: Reply
    numbers: Numbers
    trained: Mapping[str, Tensor] | None
    down: int


class Reach(Protocol):
    """Lets clients train."""

    def ask(self, turns: Sequence[Turn], held: Tensors) -> list[Answer]:
        """The answers of these clients, which begin with the server's model `held`, in their order.

        Of clients that cannot be reached there is none; somebody says so.

        Raises:
            Interrupted: somebody asked to stop.
            NumericalError: a client trained to what cannot be sent.
        """


class InTurn:
    """All clients on one model, one after the other."""

    def __init__(self, clients: Clients, aggregator: Aggregator) -> None:
        self.clients, self.aggregator = clients, aggregator
        self._shared: dict[str, Tensor] | None = None

    def ask(self, turns: Sequence[Turn], held: Tensors) -> list[Answer]:
        found = []
        for turn in turns:
            found.append(self._answer(turn, held))
            stop_if_asked(turn.round, self.clients.asked.rounds)
        return found

    def _answer(self, turn: Turn, held: Tensors) -> Answer:
        down, start = 0, held
        if not self.aggregator.to_all:
            message = self.aggregator.down(held, turn)
            down, start = bytes_of(message), self.aggregator.taken(message, held, turn)
        message, trained, numbers = self.train(turn, start)
        return Answer(Reply(turn.client, self.rows(turn.client), message), numbers, trained, down)

    def rows(self, client: int) -> int:
        """How many rows a client holds."""
        return len(self.clients.shares[client])

    def train(self, turn: Turn, start: Tensors) -> tuple[Tensors, Tensors, Numbers]:
        """What a client that begins with `start` sends back, what it ended with, and what it tells.

        Raises:
            NumericalError: it trained to what cannot be sent, or something changed that nobody averages.
        """
        if self._shared is None:
            self._shared = {name: value.clone() for name, value in self._frozen().items()}
        found = self.clients.train(turn, start)
        self._look_at_what_is_shared(turn.client)
        try:
            message = self.aggregator.up(start, found.tensors, turn)
        except ValueError as error:
            raise NumericalError(f"{self.clients.asked.aggregate.method}: {error}") from None
        loss = sum(found.losses) / len(found.losses)
        link = found.link.up, found.link.down
        return message, found.tensors, Numbers(loss, found.tokens, found.targets, found.lr, *link)

    def _frozen(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside what trains: alike on all clients, so it must not change."""
        trains = {info.param.data_ptr() for info in self.clients.infos}
        found = trained_tensors(self.clients.adaptation.model)
        return {name: value for name, value in found.items() if value.data_ptr() not in trains}

    def _look_at_what_is_shared(self, client: int) -> None:
        assert self._shared is not None, "set when a client begins"
        for name, value in self._frozen().items():
            if not torch.equal(value, self._shared[name]):
                adapter = self.clients.recipe.adapter
                method = "the model" if adapter is None else adapter.method
                raise NumericalError(
                    f"{name} changed while client {client} trained and is no parameter, so nothing averages it; "
                    f"{method} cannot be federated, choose another adapter"
                )


def stop_if_asked(round: int, rounds: int) -> None:
    """End a round that is not finished, where somebody asked to stop.

    Raises:
        Interrupted: says which round is saved.
    """
    if (number := stop.asked()) is not None:
        kept = f"round {round} of {rounds} is saved" if round else "no round was finished"
        raise Interrupted(number, stop.sentence(number, f"{kept}; add --resume to go on"))
