"""A client of a federation: the rows that it holds, and a training on them that begins where it is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lrft.build.adapt import Adaptation
from lrft.build.aggregating import aggregator_of, hiding, split_of
from lrft.build.compiling import worth_compiling
from lrft.build.hardest import hardest, kept_of
from lrft.build.native import kernels_of
from lrft.build.optimizing import build_optimizer
from lrft.build.privacy import privacy_of, secret_of
from lrft.build.steps import train_data
from lrft.build.text import Text
from lrft.build.trained_values import read, write
from lrft.core.aggregate import Phase, Tensors, Turn
from lrft.core.callback import Callback
from lrft.core.objective import Objective
from lrft.core.params import ParamInfo
from lrft.core.privacy import Privacy
from lrft.core.run import Run
from lrft.core.stages import ranks_of
from lrft.data.partition import Share
from lrft.data.steps import TrainData
from lrft.model.split import Link
from lrft.model.trained import parameter_infos
from lrft.recipe.length import check_length
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.training import schedule
from lrft.training.gradient_check import GradientCheck
from lrft.training.loop import train_steps

if TYPE_CHECKING:
    from accelerate import Accelerator

APART = 1_000_003  # between the seeds of clients; the first has that of the recipe
SEEDS = 2**31


@dataclass
class Trained:
    """What a client has done.

    Attributes:
        tensors: everything that trains, as it is now.
        rows: how many the client holds.
        losses: of the steps of its last phase, in order.
        tokens, targets: of all steps.
        lr: rate of the last step.
        link: bytes between the parts of a split model.
    """

    tensors: Tensors
    rows: int
    losses: list[float]
    tokens: int
    targets: int
    lr: float
    link: Link


class Clients:
    """All clients of a federation, on one model that they take turns with.

    A client's steps follow from its number and the round alone: its optimizer begins anew, its rows and its rate go on
    where as many rounds before would have left them, also where it was absent in some. The first client has the seed of
    the recipe, so that one client in one round is a plain training.

    Args:
        only: the one of them that trains here; by default all do.

    Raises:
        RecipeError: the optimizer cannot take what trains, or a setting does not fit into the steps of a client.
        DataError: a client has nothing to train on.
    """

    def __init__(
        self,
        recipe: Recipe,
        text: Text,
        adaptation: Adaptation,
        shares: Sequence[Share],
        accelerator: Accelerator,
        only: int | None = None,
    ) -> None:
        assert recipe.federate is not None, "a recipe of a federation"
        self.recipe, self.text, self.adaptation, self.shares = recipe, text, adaptation, shares
        self.asked, self.accelerator, self.secret = recipe.federate, accelerator, secret_of(recipe)
        self.infos: list[ParamInfo] = parameter_infos(adaptation.model)
        self.aggregator = aggregator_of(recipe, self.infos)
        self.split = split_of(recipe, adaptation, self.aggregator, self.infos)
        build_optimizer(recipe, self.infos)  # what it cannot take is told before the first round
        self.data: dict[int, TrainData] = {}
        lengths = [self.steps(client) for client in (range(len(shares)) if only is None else [only])]
        check_length(recipe, self.asked.rounds * min(lengths), ranks_of(adaptation.plan))
        for client in range(len(shares)) if recipe.privacy is not None else ():
            self.privacy(client)
        self.compiled = worth_compiling(recipe, adaptation, self.asked.rounds * sum(lengths))
        self.kernels = kernels_of(adaptation)

    def steps(self, client: int) -> int:
        """Optimizer steps of a client in a round."""
        return sum(self._length(client, phase) for phase in self.aggregator.phases)

    def _length(self, client: int, phase: Phase) -> int:
        if phase.epochs is None and self.asked.local_steps is not None:
            return self.asked.local_steps
        epochs = self.asked.local_epochs or 1.0 if phase.epochs is None else phase.epochs
        if phase.keep == 1:
            return self._data(client).total_steps(None, epochs)
        # A row is a document there, so any as many rows are as many steps.
        some = range(kept_of(len(self.shares[client]), phase.keep))
        return self._cut(client, some).total_steps(None, epochs)

    def privacy(self, client: int) -> Privacy:
        """What the steps of a client do to gradients, in a private federation.

        Raises:
            DataError, RecipeError: see `privacy_of`.
        """
        found = privacy_of(self.recipe, self._data(client), self.asked.rounds * self.steps(client))
        assert found is not None, "a private recipe"
        return found

    def train(self, turn: Turn, start: Tensors) -> Trained:
        """Train the model from `start`, on the client's rows, as long as a round is."""
        write(self.infos, start)
        run, objective = self._run(turn)
        heard, link = _Heard(), Link()
        run.callbacks = [GradientCheck(), heard]
        for phase in self.aggregator.phases:
            heard.losses = []
            self._go_through(phase, turn, run, objective, self._way(phase, turn, run.seed, link))
        tensors, rows = read(self.infos), len(self.shares[turn.client])
        return Trained(tensors, rows, heard.losses, heard.tokens, heard.targets, heard.lr, link)

    def _way(self, phase: Phase, turn: Turn, seed: int, link: Link) -> AbstractContextManager[None]:
        """How the passes of a phase go through a split model; of one that is whole, as they do."""
        cut = self.aggregator.split
        if self.split is None or cut is None:
            return nullcontext()
        if phase.bypass:
            return self.split.bypassed()
        return self.split.linked(link, hiding(cut, self.secret, seed, turn.round))

    def _go_through(
        self, phase: Phase, turn: Turn, run: Run, objective: Objective, way: AbstractContextManager[None]
    ) -> None:
        data, share, rows = self._data(turn.client), self.shares[turn.client], self.text.rows
        if phase.keep < 1:
            kept = self._hardest(turn.client, phase.keep)
            data, share = self._cut(turn.client, kept), [share[place] for place in kept]
        if rows is not None:
            run.where = lambda index: rows.where(share[index])
        length = self._length(turn.client, phase)
        steps = data.between(turn.round * length, (turn.round + 1) * length, run.device.type)
        with way, closing(steps):
            train_steps(run, steps, objective)

    def _hardest(self, client: int, share: float) -> list[int]:
        """Places among the client's rows; the model goes around what the server holds."""
        assert self.split is not None, "only a split model leaves something out"
        held = [self.text.train[index] for index in self.shares[client]]
        with self.split.bypassed():
            return hardest(
                self.adaptation.model,
                held,
                share,
                self.aggregator.error,
                self.recipe.eval.batch_tokens,
                self.text.pad_id,
            )

    def _run(self, turn: Turn) -> tuple[Run, Objective]:
        recipe, model = self._recipe(turn.client), self.adaptation.model
        length = self.steps(turn.client)
        optimizer = build_optimizer(recipe, self.infos)
        rate = schedule.build(optimizer, recipe.schedule, length * self.asked.rounds)
        rate.last_epoch = turn.round * length
        rate.refresh()
        run = Run(
            model,
            self.infos,
            optimizer,
            rate,
            length * self.asked.rounds,
            seed=recipe.train.seed,
            clip=recipe.train.clip,
            accelerator=self.accelerator,
            recipe=recipe,
            team=self.adaptation.team,
            compiled=self.compiled,
            kernels=self.kernels,
        )
        run.step = turn.round * length
        run.privacy = None if recipe.privacy is None else self.privacy(turn.client)
        return run, OBJECTIVES.get(recipe.objective.method)(recipe.objective)

    def _data(self, client: int) -> TrainData:
        if client not in self.data:
            self.data[client] = self._cut(client, range(len(self.shares[client])))
        return self.data[client]

    def _cut(self, client: int, places: Sequence[int]) -> TrainData:
        """These of the client's rows, cut into steps."""
        held = [self.text.train[self.shares[client][place]] for place in places]
        text = replace(self.text, train=held, mixture=None)
        rows = self.adaptation.packing, self.adaptation.joined
        return train_data(self._recipe(client), text, 1, 0, *rows, 1, self.secret)

    def _recipe(self, client: int) -> Recipe:
        seed = (self.recipe.train.seed + client * APART) % SEEDS
        return self.recipe.model_copy(update={"train": self.recipe.train.model_copy(update={"seed": seed})})


@dataclass
class _Heard(Callback):
    """What the steps of one client gave."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    lr: float = 0.0

    def after_step(self, run: Run) -> None:
        self.losses.append(float(run.metrics["loss"]))
        self.tokens += int(run.metrics.get("tokens", 0))
        self.targets += int(run.metrics.get("targets", 0))
        self.lr = float(run.metrics["lr"])
