"""The server of a federation as an optimizer: a step is a round, so rounds are saved, scored and resumed as steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.build.averaging_error import AveragingError, averaging_error
from lrft.build.clients import Clients, Trained, read, write
from lrft.core import stop
from lrft.core.aggregate import Aggregator, Federation, Reply, Tensors, Turn, bytes_of
from lrft.core.callback import Callback
from lrft.core.optimizer import Optimizer
from lrft.core.run import Run
from lrft.model.trained import trained_tensors
from lrft.registry.axes import AGGREGATORS
from lrft.registry.errors import Interrupted, NumericalError, RecipeError
from lrft.registry.json import Json

TOTALS = ("bytes_up", "bytes_down")


class Rounds(Optimizer):
    """Trains the clients of a round one after the other and puts what the aggregator makes of them into the model.

    Attributes:
        run: of the server, whose metrics a round adds to; set once it is built.
        totals: bytes of all rounds so far.

    Raises:
        RecipeError: the aggregator cannot average what trains.
    """

    calls_closure = True

    def __init__(self, clients: Clients) -> None:
        super().__init__(
            [{"params": [info.param for info in clients.infos]}], {"lr": clients.recipe.optimizer.lr}
        )
        self.clients, asked = clients, clients.asked
        self.run: Run | None = None
        federation = Federation(asked.clients, asked.chosen, clients.recipe.train.seed)
        try:
            made = AGGREGATORS.get(asked.aggregate.method)(asked.aggregate, federation, clients.infos)
        except ValueError as error:
            raise RecipeError(f"{asked.aggregate.method} {error}", "federate.aggregate") from None
        self.aggregator: Aggregator = made
        self.federation = federation
        self.totals = dict.fromkeys(TOTALS, 0)
        self._shared: dict[str, Tensor] | None = None

    def chosen(self, round: int) -> list[int]:
        """The clients that train in a round, rising."""
        drawn = Random(f"{self.federation.seed} round {round}")
        return sorted(drawn.sample(range(self.federation.clients), self.federation.chosen))

    def step(self, closure: object = None) -> Tensor:  # type: ignore[override]
        """A round; the mean loss of its clients over their steps, by the numbers of their rows.

        Raises:
            Interrupted: somebody asked to stop; the round is begun again by a resume.
            NumericalError: a client trained to what cannot be averaged.
        """
        assert self.run is not None, "set once the run is built"
        held, round = read(self.clients.infos), self.run.step
        if self._shared is None:
            self._shared = {name: value.clone() for name, value in self._frozen().items()}
        trained, replies, down = self._train(held, round)
        after = self._refusing(lambda: self.aggregator.aggregate(held, replies, round))
        after = {name: value.to(held[name].dtype) for name, value in after.items()}
        if self.aggregator.to_all:
            down = bytes_of(self.aggregator.down(after, Turn(-1, round))) * self.federation.clients
        shares = self.aggregator.shares(replies)
        self._record(replies, down, self._error(held, trained, shares, after))
        write(self.clients.infos, after)
        return self._loss(trained)

    def state_dict(self) -> StateDict:
        return {"aggregator": self.aggregator.state_dict(), "totals": self.totals}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.aggregator.load_state_dict(state_dict["aggregator"])
        self.totals = dict(state_dict["totals"])

    def _train(self, held: Tensors, round: int) -> tuple[list[Trained], list[Reply], int]:
        """What the clients ended with, what they sent, and how many bytes they were sent."""
        trained: list[Trained] = []
        replies: list[Reply] = []
        down = 0
        for client in self.chosen(round):
            turn, start = Turn(client, round), held
            if not self.aggregator.to_all:
                message = self.aggregator.down(held, turn)
                down += bytes_of(message)
                start = self.aggregator.taken(message, held, turn)
            found = self.clients.train(turn, start)
            self._look_at_what_is_shared(client)
            message = self._refusing(lambda a=start, b=found.tensors, t=turn: self.aggregator.up(a, b, t))
            trained.append(found)
            replies.append(Reply(client, found.rows, message))
            self._stop_if_asked(round)
        return trained, replies, down

    def _stop_if_asked(self, round: int) -> None:
        if (number := stop.asked()) is not None:
            kept = (
                f"round {round} of {self.clients.asked.rounds} is saved" if round else "no round was finished"
            )
            raise Interrupted(number, stop.sentence(number, f"{kept}; add --resume to go on"))

    def _refusing(self, make: Callable[[], Tensors]) -> Tensors:
        try:
            return make()
        except ValueError as error:
            raise NumericalError(f"{self.clients.asked.aggregate.method}: {error}") from None

    def _frozen(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside what trains: alike on all clients, so it must not change."""
        trains = {info.param.data_ptr() for info in self.clients.infos}
        found = trained_tensors(self.clients.adaptation.model)
        return {name: value for name, value in found.items() if value.data_ptr() not in trains}

    def _look_at_what_is_shared(self, client: int) -> None:
        assert self._shared is not None, "set when a round begins"
        for name, value in self._frozen().items():
            if not torch.equal(value, self._shared[name]):
                method = (
                    self.clients.recipe.adapter.method if self.clients.recipe.adapter is not None else "model"
                )
                raise NumericalError(
                    f"{name} changed while client {client} trained and is no parameter, so nothing averages it; "
                    f"{method} cannot be federated, choose another adapter"
                )

    def _error(
        self, held: Tensors, trained: Sequence[Trained], shares: Sequence[float], after: Tensors
    ) -> AveragingError:
        model, ended = self.clients.adaptation.model, [found.tensors for found in trained]
        return averaging_error(model, self.clients.infos, held, ended, shares, after)

    def _record(self, replies: Sequence[Reply], down: int, error: AveragingError) -> None:
        up = sum(bytes_of(reply.message) for reply in replies)
        self.totals = {
            "bytes_up": self.totals["bytes_up"] + up,
            "bytes_down": self.totals["bytes_down"] + down,
        }
        assert self.run is not None, "set once the run is built"
        self.run.record(
            clients=len(replies),
            bytes_up=up,
            bytes_down=down,
            averaging_error=error.absolute,
            averaging_error_relative=error.relative,
        )

    def _loss(self, trained: Sequence[Trained]) -> Tensor:
        assert self.run is not None, "set once the run is built"
        self.run.record(tokens=sum(t.tokens for t in trained), targets=sum(t.targets for t in trained))
        self.param_groups[0]["lr"] = trained[-1].lr
        rows = sum(found.rows for found in trained)
        means = [found.rows / rows * sum(found.losses) / len(found.losses) for found in trained]
        return torch.tensor(sum(means), dtype=torch.float64)


class Summary(Callback):
    """What result.json says of a federation."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def finish(self, run: Run) -> None:
        clients = self.rounds.clients
        start = bytes_of(trained_tensors(clients.adaptation.model))
        found: dict[str, Json] = {
            "clients": clients.asked.clients,
            "rounds": clients.asked.rounds,
            "aggregate": clients.asked.aggregate.method,
            "rows": [len(share) for share in clients.shares],
            "bytes_start": start,
            **self.rounds.totals,
        }
        run.summary["federation"] = found
