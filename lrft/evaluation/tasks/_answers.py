"""Greedy answers to held-out rows, for the tasks that read what the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from lrft.data.example import Row
from lrft.data.question import Question
from lrft.data.rows import Rows
from lrft.data.thoughts import said
from lrft.data.tokenize import Renderer
from lrft.evaluation.generate import generate
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import each
from lrft.registry.errors import DataError
from lrft.registry.json import Json


@dataclass(frozen=True)
class Answer:
    """One generation, special tokens left out; `stopped` is false when it was cut at the token limit.

    The prompt ends in what the chat template writes of itself before an answer that nothing is thought for. Where
    the reference had thoughts before it, `written` is all that the model wrote, and `output` what follows its own.
    """

    question: Question
    prompt: str
    output: str
    stopped: bool
    written: str = ""

    @property
    def reference(self) -> str:
        """The right answer."""
        return self.question.reference

    def sample(self, correct: bool, **more: Json) -> dict[str, Json]:
        """The line that the samples file shows."""
        return {
            "prompt": self.prompt,
            "output": self.output,
            "reference": self.reference,
            "correct": correct,
            "stopped": self.stopped,
            **({"written": self.written} if self.question.marks else {}),
            **more,
        }


def greedy_answers(
    subject: Subject, rows: Rows, renderer: Renderer, max_new_tokens: int, what: str
) -> list[Answer]:
    """Generate an answer to every row's prompt, in the order of `rows`.

    Raises:
        DataError: a row without a prompt or a reference, by file and line.
    """
    questions = each(rows, lambda row: _question(renderer, row))
    prompts = [question.prompt for question in questions]
    features = [question.features for question in questions]
    outputs = generate(subject, prompts, max_new_tokens, what=what, where=rows.where, features=features)
    return [
        Answer(
            question=question,
            prompt=str(subject.tokenizer.decode(question.prompt)),
            output=said(subject.tokenizer, output, question.marks),
            stopped=len(output) < max_new_tokens,
            written=subject.decode(output),
        )
        for question, output in zip(questions, outputs, strict=True)
    ]


class Thinking(TypedDict, total=False):
    """What the settings of a task say of thoughts."""

    thinking: dict[str, list[str]]


def thinking(questions: Sequence[Question]) -> Thinking:
    """The setting that says how thoughts before the answers are treated; none where no row and no template has any."""
    given = sorted({question.given for question in questions} - {""})
    closing = sorted({question.marks.closing for question in questions if question.marks})
    found = {"given": given, "left_out_through": closing}
    return {"thinking": found} if given or closing else {}


def _question(renderer: Renderer, row: Row) -> Question:
    question = renderer.question(row)
    if not question.prompt or not question.reference:
        missing = "reference answer" if question.prompt else "prompt"
        raise DataError(
            f"the row has no {missing} in the {renderer.format.name} format, so there is nothing to score"
        )
    return question
