"""Questions after n demonstrations, the nearest training rows, answered by the likelihood of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lrft.build.classes import Classes
from lrft.core import stop
from lrft.data.encoded import Encoded
from lrft.data.example import Example
from lrft.data.question import Question
from lrft.data.row_sums import record_rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.answers_file import AnswersFile, Line
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.subject import Subject
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

BETWEEN = "\n\n"  # demonstrations in plain text
TOGETHER = 16  # questions that are scored before they are written down


class ShotLine(Line):
    """The log-probability of every class after a question."""

    logprobs: list[float]


@dataclass(frozen=True)
class Answered:
    """Of held-out rows with n demonstrations, which are right, and the mean tokens of a question with its answer."""

    right: list[bool]
    tokens: float


@dataclass(frozen=True)
class Demonstrated:
    """Held-out rows and the training rows that are shown before them.

    Attributes:
        near: (held-out rows, training rows) int64, the nearest training row first.
        says: what the answer of each class is, as the training rows write it.
    """

    subject: Subject
    pool: Classes
    held: Classes
    near: Tensor
    says: Sequence[str]

    def answer(self, shots: int, path: Path, about: dict[str, Json]) -> Answered:
        """Score every question with so many demonstrations, into a file that is gone on with.

        Raises:
            DataError: a question with its demonstrations is longer than the model's positions.
            EvaluationStopped: a signal came; what was scored is kept.
        """
        asked = [self._asked(row, shots) for row in range(len(self.held.gold))]
        whole = [_as_row(one) for group in asked for one in group]
        file = AnswersFile(path, ShotLine)
        try:
            with stop.held():
                file.open({**about, "shots": shots, "rows_sha256": record_rows(whole)["sha256"]}, len(asked))
            while file.written < len(asked):
                self._score(file, asked)
            lines = [line["logprobs"] for line in file.lines()]
        finally:
            file.close()
        if any(len(line) != len(self.says) for line in lines):
            raise UsageError(f"{path}: a line does not have one number a class; remove the file")
        picks = [max(range(len(line)), key=line.__getitem__) for line in lines]
        right = [pick == gold for pick, gold in zip(picks, self.held.gold, strict=True)]
        own = [len(_as_row(group[gold]).input_ids) for group, gold in zip(asked, self.held.gold, strict=True)]
        return Answered(right, sum(own) / len(own))

    def _score(self, file: AnswersFile, asked: Sequence[Sequence[Question]]) -> None:
        first = file.written - file.written % TOGETHER  # batched alike wherever it is gone on
        groups = asked[first : first + TOGETHER]
        flat = [one for group in groups for one in group]
        places = [self.held.rows.where(first + k) for k, group in enumerate(groups) for _ in group]
        prompts, answers = [one.prompt for one in flat], [one.answer for one in flat]
        features = [one.features for one in flat]
        quiet = replace(self.subject, progress=None)
        found = iter(continuation_logprobs(quiet, prompts, answers, "answers", places.__getitem__, features))
        lines: list[dict[str, Json]] = []
        for k, group in enumerate(groups):
            scores: list[Json] = [next(found)[0] for _ in group]
            lines.append({"row": first + k, "logprobs": scores})
        with stop.held():
            file.append(lines[file.written - first :])
        if self.subject.progress is not None:
            self.subject.progress("answering after demonstrations", file.written, len(asked))

    def _asked(self, row: int, shots: int) -> list[Question]:
        """The question of a held-out row with every class as its answer; the nearest demonstration stands last."""
        renderer = self.subject.renderer
        shown = [self._example(renderer, self.pool, int(k)) for k in self.near[row, :shots].flip(0)]
        own = self._example(renderer, self.held, row)
        return [renderer.example_question(after(shown, with_answer(own, says))) for says in self.says]

    @staticmethod
    def _example(renderer: Renderer, rows: Classes, row: int) -> Example:
        return renderer.format.completed(rows.rows[row])


def answer_of(example: Example) -> str:
    """The text of the (last) answer, as the row writes it."""
    if not example.messages:
        return example.completion
    content = example.messages[example.learnt[-1]]["content"]
    return content if isinstance(content, str) else ""


def with_answer(example: Example, says: str) -> Example:
    """The example through its (last) answer, which is now another."""
    if not example.messages:
        return replace(example, completion=says)
    last = example.learnt[-1]
    answer = {**example.messages[last], "content": says}
    return replace(example, messages=(*example.messages[:last], answer), learn="last")


def after(shown: Sequence[Example], own: Example) -> Example:
    """The example with others before it, as earlier turns or as text; its own system message alone is read."""
    if not own.messages:
        before = "".join(f"{one.prompt}{one.completion}{BETWEEN}" for one in shown)
        return replace(own, prompt=before + own.prompt)
    system = [said for said in own.messages[:1] if said["role"] == "system"]
    turns = [said for one in shown for said in one.messages[: one.learnt[-1] + 1] if said["role"] != "system"]
    return replace(own, messages=(*system, *turns, *own.messages[len(system) :]))


def _as_row(question: Question) -> Encoded:
    ids = [*question.prompt, *question.answer]
    return Encoded(ids, [False] * len(question.prompt) + [True] * len(question.answer), length=len(ids))
