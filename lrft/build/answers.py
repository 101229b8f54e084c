"""Answers that the model draws to the prompts of rows, in groups of several to each, and what these are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lrft.build.reworded import Reworded, find_questions
from lrft.core.drawing import Drawing, Lines
from lrft.core.reward import Attempt
from lrft.core.run import Run
from lrft.data.encoded import Encoded
from lrft.data.question import Question
from lrft.data.rows import Rows
from lrft.data.thoughts import said
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Subject


@dataclass(frozen=True)
class Group:
    """The answers to the prompt of a row.

    Attributes:
        index: of the row.
        answers: the tokens of each, what ended it included.
        attempts: each as rewards see it.
        scores: (answers, rewards) float64, what each reward gave; where there are ranks (answers, rewards, ranks).
        totals: the same, weighed and added: (answers,) or (answers, ranks).
    """

    index: int
    question: Question
    answers: list[list[int]]
    attempts: list[Attempt]
    scores: Tensor
    totals: Tensor

    @property
    def alike(self) -> bool:
        """Whether all answers are worth the same, and so teach nothing."""
        return bool((self.totals.amax(0) == self.totals.amin(0)).all())

    def documents(self) -> list[Encoded]:
        """The prompt and an answer, of which every token is learnt, what ended it included; for every answer."""
        prompt = self.question.prompt
        return [
            Encoded(
                [*prompt, *tokens],
                [False] * len(prompt) + [True] * len(tokens),
                length=len(prompt) + len(tokens),
                features=self.question.features,
            )
            for tokens in self.answers
        ]


class Answers:
    """Draws them from the model as it is.

    Args:
        rows: of the data, one for each of its indices.
    """

    def __init__(self, run: Run, rows: Rows, objective: Drawing, subject: Subject) -> None:
        self.run, self.rows, self.objective, self.subject = run, rows, objective, subject
        self.rewards, self.size = objective.rewards(), objective.config.group
        self.question = find_questions(objective, subject.renderer, rows)
        self.reworded = None if objective.rewords is None else Reworded(run, objective, subject)
        self._breaks = cache(self._count_breaks)

    def to(self, examples: Sequence[int], numbers: Sequence[int]) -> list[Group]:
        """A group to each of these rows.

        Args:
            numbers: of the first answer to each row; those of the others follow. They decide what is drawn.
        """
        config, subject = self.objective.config, self.subject
        questions = [self.question(self.rows[index]) for index in examples]
        asked = [place for place in range(len(examples)) for _ in range(self.size)]
        answers = generate(
            subject,
            [questions[place].prompt for place in asked],
            config.max_new_tokens,
            what="drawing answers",
            where=lambda k: self.rows.where(examples[asked[k]]),
            sampling=Sampling(config.temperature, seed=self.run.seed),
            features=[questions[place].features for place in asked],
            keep_stop=True,
            numbers=[number + k for number in numbers for k in range(self.size)],
        )
        return [
            self._group(index, question, answers[place * self.size : (place + 1) * self.size])
            for place, (index, question) in enumerate(zip(examples, questions, strict=True))
        ]

    def lines(self, groups: Sequence[Group]) -> Lines | None:
        """Where the lines of all these answers are, for an objective that rewards them one by one."""
        if not self.objective.ranks:
            return None
        found: list[int] = []
        stops: list[bool] = []
        for tokens in (answer for group in groups for answer in group.answers):
            line = 0
            for token in tokens:
                found.append(line)
                line += self._breaks(token)
                stops.append(token in self.subject.stop_ids)
        return Lines(torch.tensor(found), torch.tensor(stops))

    def _group(self, index: int, question: Question, answers: list[list[int]]) -> Group:
        attempts = [self._attempt(index, question, tokens) for tokens in answers]
        if self.reworded is not None:
            worth = torch.tensor(self.reworded.worth(self.rows[index], attempts), dtype=torch.float64)
            return Group(index, question, answers, attempts, worth[:, None], worth)
        scores = torch.tensor([self._scores(attempt) for attempt in attempts], dtype=torch.float64)
        weights = scores.new_tensor([reward.config.weight for reward in self.rewards])
        totals = (scores.movedim(1, -1) @ weights) if self.objective.ranks else scores @ weights
        return Group(index, question, answers, attempts, scores, totals)

    def _scores(self, attempt: Attempt) -> list[float] | list[list[float]]:
        """What every reward gives for the answer, or for each of its first lines, 0 for one that is not there."""
        ranks = self.objective.ranks
        if not ranks:
            return [reward(attempt) for reward in self.rewards]
        items = attempt.written.split("\n")[:ranks]
        missing = [0.0] * (ranks - len(items))
        return [[*reward.by_rank(attempt, items), *missing] for reward in self.rewards]

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

    def _count_breaks(self, token: int) -> int:
        return self.subject.decode([token]).count("\n")
