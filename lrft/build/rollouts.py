"""Steps whose answers the model draws when their turn comes: an iterable of steps for the loop that trains anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.build.answers import Answers, Group
from lrft.build.reward_counts import Counts, Told, count, means, together
from lrft.build.text import Text
from lrft.core.batch import Batch, Sampled
from lrft.core.callback import Callback
from lrft.core.context import computing
from lrft.core.drawing import Drawing
from lrft.core.notes import say
from lrft.core.objective import Objective
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.rows import Rows
from lrft.data.steps import StepBatches, TrainData
from lrft.evaluation.batching import scoring
from lrft.evaluation.sampling import uniform
from lrft.evaluation.subject import Subject
from lrft.registry.errors import RecipeError

PER_STEP = 2**32  # numbers of answers that a step may have; number and seed decide what is drawn
PER_ROUND = 2**24  # of these, those of the rows as they are laid, and of each round of rows in their place


def make_rollouts(
    run: Run, data: TrainData, text: Text, objective: Objective, subject: Subject, joined: bool
) -> Rollouts | None:
    """What draws the answers of every step; None where the objective learns from the rows' own.

    Raises:
        RecipeError: several processes would hold answers, and a checkpoint has those of one.
    """
    if not isinstance(objective, Drawing):
        return None
    if objective.config.updates > 1 and run.processes > 1:
        message = "a checkpoint between two steps on the same answers holds those of one process; write 1"
        raise RecipeError(message, "objective.updates")
    assert text.rows is not None, "steps are made of training rows"
    return Rollouts(run, data, text.rows, objective, subject, joined)


class Rollouts(Callback):
    """Draws the answers of a step from the model as it is, and keeps them for as many steps as learn from them.

    What is drawn follows from the weights, the seed and the place of an answer in the run alone, so nothing has to be
    kept for a resume but the answers that further steps learn from.

    Args:
        data: cuts the prompts into steps.
        rows: those of the data, one for each of its indices.
        joined: the documents of a micro-batch are one row, without padding.
    """

    def __init__(
        self, run: Run, data: TrainData, rows: Rows, objective: Drawing, subject: Subject, joined: bool
    ) -> None:
        self.run, self.data, self.joined = run, data, joined
        self.objective, self.group = objective, objective.config.group
        # The loop looks whether to stop once the step that is drawn for is made.
        self.subject = replace(subject, should_stop=_never, progress=None)
        self.answers = Answers(run, rows, objective, self.subject)
        self.held: StepBatches | None = None
        self.told = Told(objective.config.redraws)

    def between(self, first: int, end: int, device: str = "cpu") -> Generator[StepBatches, None, None]:
        """The steps from `first` on, before `end`, each drawn when it is asked for, whatever the device."""
        for step in range(first, end):
            if step < self.run.total_steps:  # a callback may have made the one before the last
                yield self.at(step)

    def at(self, step: int) -> StepBatches:
        """Step `step`, of the answers that are held where it is not the first to learn from them."""
        laid = self.data.at(step)
        if step % self.data.repeats == 0:
            self.held = self._drawn(step // self.data.repeats, laid)
        assert self.held is not None, "a checkpoint between two steps on the same answers holds them"
        return replace(self.held, epoch=laid.epoch)

    def gradients_by(self, run: Run) -> int:
        """Answers that are worth the same teach nothing, for as many steps as they are drawn."""
        return run.total_steps + 1

    def finish(self, run: Run) -> None:
        for sentence in self.told.sentences():
            say(sentence)

    def state_dict(self) -> StateDict:
        between = self.held is not None and self.run.step % self.data.repeats
        state: StateDict = self.told.state_dict()
        return {**state, "held": _state(self.held)} if between and self.held is not None else state

    def load_state_dict(self, state: StateDict) -> None:
        self.told.load_state_dict(state)
        self.held = _step(state["held"]) if "held" in state else None

    def _drawn(self, draw: int, laid: StepBatches) -> StepBatches:
        """The step whose rows are `laid`, the `draw`-th that is drawn for."""
        made: list[Batch] = []
        counted = defaultdict[str, float](float)
        others = self.data.visited(draw * self.data.repeats) if self.objective.config.redraws else []
        for index, batch in enumerate(laid.micro_batches):
            place = index * self.run.processes + self.run.rank
            first = draw * PER_STEP + place * self.data.batch_size * self.group
            made.append(self._answered(batch.examples, first, others, counted))
            counted["targets"] += len(made[-1].targets)
            counted["tokens"] += made[-1].tokens
        whole = together(self.run.team.gather(dict(counted)))
        self.told.add(whole)
        return replace(
            laid,
            micro_batches=made,
            targets=int(whole["targets"]),
            tokens=int(whole["tokens"]),
            metrics=means(whole, self.objective.config.redraws),
        )

    def _answered(self, examples: Sequence[int], first: int, others: Sequence[int], counted: Counts) -> Batch:
        """A micro-batch of answers to these rows or those in their place, the first of which has the number `first`."""
        numbers = [first + place * self.group for place in range(len(examples))]
        groups = self.answers.to(examples, numbers)
        count(groups, self.answers.rewards, counted)
        groups = self._replaced(groups, numbers, others, counted)
        documents = [document for group in groups for document in group.documents()]
        lines = [documents] if self.joined else [[document] for document in documents]
        batch = collate(lines, self.subject.pad_id, None, [[group.index] for group in groups])
        return replace(batch, sampled=self._judged(batch, groups))

    def _replaced(
        self, groups: list[Group], numbers: Sequence[int], others: Sequence[int], counted: Counts
    ) -> list[Group]:
        """The same, with other rows in the place of those whose answers are alike, as often as is allowed."""
        for again in range(1, self.objective.config.redraws + 1):
            alike = [place for place, group in enumerate(groups) if group.alike]
            if not alike:
                break
            counted["redrawn"] += len(alike)
            drawn = [numbers[place] + again * PER_ROUND for place in alike]
            # Which row it is follows from the place in the run as well; no token has the number of a step below 0.
            rows = [others[int(uniform(self.run.seed, number, -1) * len(others))] for number in drawn]
            for place, group in zip(alike, self.answers.to(rows, drawn), strict=True):
                groups[place] = group
        counted["alike_left"] += sum(group.alike for group in groups)
        return groups

    def _judged(self, batch: Batch, groups: Sequence[Group]) -> Sampled:
        run, totals = self.run, torch.stack([group.totals for group in groups])
        lines = self.answers.lines(groups)
        there = batch.to(run.device)
        with scoring(run.model), computing(batch, counts=False, done=run.step / run.planned_steps):
            return self.objective.judge(run.model, there, totals, lines).changed(Tensor.cpu)


def _state(held: StepBatches) -> StateDict:
    """A step as plain values and tensors."""
    return {**_fields(held), "micro_batches": [_fields(batch) for batch in held.micro_batches]}


def _step(state: StateDict) -> StepBatches:
    batches = [Batch(**{**one, "sampled": Sampled(**one["sampled"])}) for one in state["micro_batches"]]
    return StepBatches(**{**state, "micro_batches": batches})


def _fields(value: StepBatches | Batch | Sampled) -> StateDict:
    found = {one.name: getattr(value, one.name) for one in fields(value)}
    return {name: _fields(one) if isinstance(one, Sampled) else one for name, one in found.items()}


def _never() -> bool:
    return False
