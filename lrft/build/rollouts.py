"""Steps whose answers the model draws when their turn comes: an iterable of steps for the loop that trains anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.build.text import Text
from lrft.core.batch import Batch, Sampled
from lrft.core.callback import Callback
from lrft.core.context import computing
from lrft.core.drawing import Drawing
from lrft.core.notes import say
from lrft.core.objective import Objective
from lrft.core.reward import Attempt
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.question import Question
from lrft.data.rows import Rows
from lrft.data.steps import StepBatches, TrainData
from lrft.data.thoughts import said
from lrft.evaluation.batching import scoring
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Subject
from lrft.registry.errors import RecipeError

Counts = defaultdict[str, float]
PER_STEP = 2**32  # numbers of answers that a step may have; number and seed decide what is drawn


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
        self.run, self.data, self.rows, self.joined = run, data, rows, joined
        self.objective, self.rewards, self.group = objective, objective.rewards(), objective.config.group
        # The loop looks whether to stop once the step that is drawn for is made.
        self.subject = replace(subject, should_stop=_never, progress=None)
        self.held: StepBatches | None = None
        self.differed = False  # whether any two answers to a prompt were worth more and less

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
        if not self.differed:
            say("all answers to a prompt were worth the same in every step, so no reward taught anything")

    def state_dict(self) -> StateDict:
        between = self.held is not None and self.run.step % self.data.repeats
        state: StateDict = {"differed": self.differed}
        return {**state, "held": _state(self.held)} if between and self.held is not None else state

    def load_state_dict(self, state: StateDict) -> None:
        self.differed = state["differed"]
        self.held = _step(state["held"]) if "held" in state else None

    def _drawn(self, draw: int, laid: StepBatches) -> StepBatches:
        """The step whose rows are `laid`, the `draw`-th that is drawn for."""
        made: list[Batch] = []
        counted = defaultdict[str, float](float)
        for index, batch in enumerate(laid.micro_batches):
            place = index * self.run.processes + self.run.rank
            first = draw * PER_STEP + place * self.data.batch_size * self.group
            made.append(self._answered(batch.examples, first, counted))
            counted["targets"] += len(made[-1].targets)
            counted["tokens"] += made[-1].tokens
        whole = _together(self.run.team.gather(dict(counted)))
        metrics = _means(whole)
        self.differed = self.differed or metrics["rewards_alike"] < 1
        return replace(
            laid,
            micro_batches=made,
            targets=int(whole["targets"]),
            tokens=int(whole["tokens"]),
            metrics=metrics,
        )

    def _answered(self, examples: Sequence[int], first: int, counted: Counts) -> Batch:
        """A micro-batch of answers to these rows, the first of which has the number `first`."""
        config, subject = self.objective.config, self.subject
        asked = [(i, subject.renderer.question(self.rows[i])) for i in examples]
        asked = [one for one in asked for _ in range(self.group)]
        answers = generate(
            subject,
            [question.prompt for _, question in asked],
            config.max_new_tokens,
            what="drawing answers",
            where=lambda k: self.rows.where(asked[k][0]),
            sampling=Sampling(config.temperature, seed=self.run.seed),
            first=first,
            features=[question.features for _, question in asked],
            keep_stop=True,
        )
        attempts = [self._attempt(*one, tokens) for one, tokens in zip(asked, answers, strict=True)]
        scores = torch.tensor(
            [[reward(attempt) for reward in self.rewards] for attempt in attempts], dtype=torch.float64
        )
        documents = [_document(one, tokens) for (_, one), tokens in zip(asked, answers, strict=True)]
        lines = [documents] if self.joined else [[document] for document in documents]
        batch = collate(lines, subject.pad_id, None, [[i] for i in examples])
        weights = scores.new_tensor([reward.config.weight for reward in self.rewards])
        totals = (scores @ weights).view(-1, self.group)
        self._count(counted, attempts, scores, totals)
        return replace(batch, sampled=self._judged(batch, totals))

    def _attempt(self, index: int, question: Question, tokens: list[int]) -> Attempt:
        stopped = tokens[-1] in self.subject.stop_ids
        words = tokens[:-1] if stopped else tokens
        return Attempt(
            output=said(self.subject.tokenizer, words, question.marks),
            written=self.subject.decode(words),
            reference=question.reference,
            tokens=len(tokens),
            stopped=stopped,
            limit=self.objective.config.max_new_tokens,
            row=self.rows[index],
        )

    def _judged(self, batch: Batch, totals: Tensor) -> Sampled:
        run = self.run
        with scoring(run.model), computing(batch, counts=False, done=run.step / run.planned_steps):
            return self.objective.judge(run.model, batch.to(run.device), totals).changed(Tensor.cpu)

    def _count(self, counted: Counts, attempts: Sequence[Attempt], scores: Tensor, totals: Tensor) -> None:
        """Sums over answers, and over prompts."""
        spread = totals.std(1)
        counted["answers"] += len(attempts)
        counted["prompts"] += len(totals)
        counted["reward"] += float(totals.sum())
        counted["spread"] += float(spread.sum())
        counted["alike"] += int((totals.amax(1) == totals.amin(1)).sum())
        counted["stopped"] += sum(attempt.stopped for attempt in attempts)
        for place, reward in enumerate(self.rewards if len(self.rewards) > 1 else ()):
            counted[f"reward/{reward.name}"] += float(scores[:, place].sum())


def _together(parts: Sequence[Mapping[str, float]]) -> Counts:
    whole = defaultdict[str, float](float)
    for part in parts:
        for name, total in part.items():
            whole[name] += total
    return whole


def _means(whole: Counts) -> dict[str, float]:
    """What is recorded of a step, from the sums over all of it; in the order in which a checkpoint gives it back."""
    answers, prompts = whole["answers"], whole["prompts"]
    found = {
        "reward": whole["reward"] / answers,
        "reward_spread": whole["spread"] / prompts,
        "rewards_alike": whole["alike"] / prompts,
        "answer_tokens": whole["targets"] / answers,
        "answers_stopped": whole["stopped"] / answers,
        **{name: total / answers for name, total in whole.items() if "/" in name},
    }
    return dict(sorted(found.items()))


def _document(question: Question, tokens: list[int]) -> Encoded:
    """The prompt and an answer, of which every token is learnt, what ended it included."""
    ids = [*question.prompt, *tokens]
    mask = [False] * len(question.prompt) + [True] * len(tokens)
    return Encoded(ids, mask, length=len(ids), features=question.features)


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
