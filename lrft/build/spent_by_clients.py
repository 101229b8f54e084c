"""What the private steps of a federation's clients are worth, client by client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrft.build.privacy import record_of, spent_of
from lrft.build.rounds import Rounds
from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.run import Run
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json
from lrft.training.accountant import Spent, epsilon_of


class SpentByClients(Callback):
    """Counts in how many rounds each client trained, and says what its steps are worth.

    The guarantee is of each row of a client, for whoever sees all messages of all rounds, the server included: which
    clients a round draws is no secret, so that their draw makes nothing smaller.
    """

    def __init__(self, recipe: Recipe, rounds: Rounds) -> None:
        self.recipe, self.rounds = recipe, rounds
        self.clients = rounds.clients
        self.took: dict[int, int] = {}  # client -> rounds that it trained in

    def after_step(self, run: Run) -> None:
        for client in self.rounds.chosen(run.step - 1):
            self.took[client] = self.took.get(client, 0) + 1
        run.record(epsilon=max(self.epsilons().values()))

    def epsilons(self) -> dict[int, float]:
        """Of every client that trained."""
        asked = self.recipe.privacy
        assert asked is not None, "a private recipe"
        known: dict[Spent, float] = {}
        found = {}
        for client in sorted(self.took):
            spent = self._spent(client)
            if spent not in known:
                known[spent] = epsilon_of([spent], asked.delta, asked.accountant)
            found[client] = known[spent]
        return found

    def finish(self, run: Run) -> None:
        epsilons, every = self.epsilons(), []
        for client, share in enumerate(self.clients.shares):
            found: dict[str, Json] = {"client": client, "rows": len(share), "steps": 0, "epsilon": 0.0}
            if client in epsilons:
                steps = self._spent(client).steps
                found |= spent_of(self.clients.privacy(client), steps, epsilons[client])
            every.append(found)
        most, record = max(epsilons.values(), default=0.0), record_of(self.recipe)
        say(f"privacy: the client that spent most is at epsilon {most:.3g} at delta {record['delta']:g}")
        run.summary["privacy"] = {
            **record,
            "epsilon": most,
            "clients": every,
        }

    def state_dict(self) -> Mapping[str, object]:
        return {
            "secret": str(self.clients.secret.number),
            "rounds": {str(k): n for k, n in self.took.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        self.clients.secret.number = int(state["secret"])
        self.took = {int(client): int(count) for client, count in state["rounds"].items()}

    def _spent(self, client: int) -> Spent:
        privacy = self.clients.privacy(client)
        return Spent(privacy.noise, privacy.rate, self.took[client] * self.clients.steps(client))
