"""The server of a federation as an optimizer: a step is a round, so rounds are saved, scored and resumed as steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.build.averaging_error import averaging_error
from lrft.build.clients import Clients
from lrft.build.reach import Answer, InTurn, Reach
from lrft.build.trained_values import read, write
from lrft.core.aggregate import Aggregator, Tensors, Turn, bytes_of
from lrft.core.callback import Callback
from lrft.core.optimizer import Optimizer
from lrft.core.run import Run
from lrft.model.trained import trained_tensors
from lrft.registry.errors import LrftError, NumericalError
from lrft.registry.json import Json

TOTALS = ("bytes_up", "bytes_down")
MakeReach = Callable[[Clients, Aggregator], Reach]


class Rounds(Optimizer):
    """Lets the clients of a round train and puts what the aggregator makes of them into the model.

    Args:
        reach: makes what reaches the clients; by default they train here in turn.

    Attributes:
        run: of the server, whose metrics a round adds to; set once it is built.
        totals: bytes of all rounds so far.

    """

    calls_closure = True

    def __init__(self, clients: Clients, reach: MakeReach = InTurn) -> None:
        super().__init__(
            [{"params": [info.param for info in clients.infos]}], {"lr": clients.recipe.optimizer.lr}
        )
        self.clients, self.aggregator = clients, clients.aggregator
        self.reach = reach(clients, self.aggregator)
        self.run: Run | None = None
        self.totals = dict.fromkeys(TOTALS, 0)

    def chosen(self, round: int) -> list[int]:
        """The clients that train in a round, rising."""
        asked = self.clients.asked
        drawn = Random(f"{self.clients.recipe.train.seed} round {round}")
        return sorted(drawn.sample(range(asked.clients), asked.chosen))

    def step(self, closure: object = None) -> Tensor:  # type: ignore[override]
        """A round; the mean loss of its clients over their steps, by the numbers of their rows.

        Raises:
            Interrupted: somebody asked to stop; the round is begun again by a resume.
            NumericalError: a client trained to what cannot be averaged.
            LrftError: no client could be reached, or what they sent does not fit.
        """
        assert self.run is not None, "set once the run is built"
        held, round = read(self.clients.infos), self.run.step
        answers = self.reach.ask([Turn(client, round) for client in self.chosen(round)], held)
        if not answers:
            raise LrftError(
                f"no client answered in round {round + 1}; {round} are saved, add --resume to go on"
            )
        replies = [answer.reply for answer in answers]
        try:
            made = self.aggregator.aggregate(held, replies, round)
            if odd := [name for name, one in held.items() if made[name].shape != one.shape]:
                raise IndexError(f"{odd[0]} would be {tuple(made[odd[0]].shape)}")
        except ValueError as error:
            raise NumericalError(f"{self.clients.asked.aggregate.method}: {error}") from None
        except (KeyError, IndexError, RuntimeError) as error:  # a client elsewhere may send anything
            raise LrftError(
                f"{self.clients.asked.aggregate.method}: the messages of round {round + 1} do not fit what trains "
                f"({error}); {round} are saved, add --resume to go on"
            ) from error
        after = {name: value.to(held[name].dtype) for name, value in made.items()}
        self._record(answers, round, after)
        self._measure(answers, held, after)
        write(self.clients.infos, after)
        return self._loss(answers)

    def state_dict(self) -> StateDict:
        found = {"aggregator": self.aggregator.state_dict(), "totals": self.totals}
        return {**found, "secret": str(self.clients.secret.number)} if self._hides else found

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.aggregator.load_state_dict(state_dict["aggregator"])
        totals = {name: state_dict["totals"][name] for name in TOTALS}
        if any(type(value) is not int or value < 0 for value in totals.values()):
            raise ValueError(f"bytes are counted, and the totals are {totals}")
        self.totals = totals
        if self._hides:
            self.clients.secret.number = int(state_dict["secret"])

    @property
    def _hides(self) -> bool:
        """Whether clients draw noise from the secret without a `privacy` section, which keeps it by itself."""
        return self.aggregator.split is not None and self.aggregator.split.eta is not None

    def _record(self, answers: Sequence[Answer], round: int, after: Tensors) -> None:
        assert self.run is not None, "set once the run is built"
        up, down = sum(bytes_of(a.reply.message) for a in answers), sum(a.down for a in answers)
        if self.aggregator.to_all and not down:
            down = bytes_of(self.aggregator.down(after, Turn(-1, round))) * self.clients.asked.clients
        if self.aggregator.split is not None:
            crossed = sum(a.numbers.link_up for a in answers), sum(a.numbers.link_down for a in answers)
            up, down = up + crossed[0], down + crossed[1]
            self.run.record(link_up=crossed[0], link_down=crossed[1])
        self.totals = {
            "bytes_up": self.totals["bytes_up"] + up,
            "bytes_down": self.totals["bytes_down"] + down,
        }
        self.run.record(clients=len(answers), bytes_up=up, bytes_down=down)

    def _measure(self, answers: Sequence[Answer], held: Tensors, after: Tensors) -> None:
        """How far the round is from an average, where it is known what the clients ended with."""
        trained = [dict(answer.trained) for answer in answers if answer.trained is not None]
        if len(trained) < len(answers):
            return
        shares = self.aggregator.shares([answer.reply for answer in answers])
        model, infos = self.clients.adaptation.model, self.clients.infos
        error = averaging_error(model, infos, held, trained, shares, after)
        assert self.run is not None, "set once the run is built"
        self.run.record(averaging_error=error.absolute, averaging_error_relative=error.relative)

    def _loss(self, answers: Sequence[Answer]) -> Tensor:
        assert self.run is not None, "set once the run is built"
        numbers = [answer.numbers for answer in answers]
        self.run.record(tokens=sum(n.tokens for n in numbers), targets=sum(n.targets for n in numbers))
        self.param_groups[0]["lr"] = numbers[-1].lr
        rows = sum(answer.reply.examples for answer in answers)
        shares = [answer.reply.examples / rows for answer in answers]
        return torch.tensor(
            sum(p * n.loss for p, n in zip(shares, numbers, strict=True)), dtype=torch.float64
        )


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
