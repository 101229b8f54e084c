"""Greedy answers to held-out rows, for the tasks that read what the model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lrft.core.errors import DataError
from lrft.data.sources import Rows
from lrft.data.tokenize import Renderer
from lrft.evaluate.generate import generate
from lrft.evaluate.subject import Subject
from lrft.evaluate.tasks._task import each


@dataclass(frozen=True)
class Answer:
    """One generation, special tokens left out; `stopped` is false when it was cut at the token limit."""

    prompt: str
    output: str
    reference: str
    stopped: bool

    def sample(self, correct: bool, **more: Any) -> dict[str, Any]:
        """The line that the samples file shows."""
        return {
            "prompt": self.prompt,
            "output": self.output,
            "reference": self.reference,
            "correct": correct,
            "stopped": self.stopped,
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
    prompts = [prompt for prompt, _ in questions]
    outputs = generate(subject, prompts, max_new_tokens, what=what, where=rows.where)
    return [
        Answer(
            prompt=str(subject.tokenizer.decode(prompt)),
            output=subject.decode(output),
            reference=reference,
            stopped=len(output) < max_new_tokens,
        )
        for (prompt, reference), output in zip(questions, outputs, strict=True)
    ]


def _question(renderer: Renderer, row: dict[str, Any]) -> tuple[list[int], str]:
    prompt, reference = renderer.prompt_ids(row), renderer.reference(row)
    if not prompt or not reference:
        missing = "reference answer" if prompt else "prompt"
        raise DataError(
            f"the row has no {missing} in the {renderer.format.name} format, so there is nothing to score"
        )
    return prompt, reference
