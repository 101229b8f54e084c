"""Multiple-choice rows whose answer is decided by one token: what comes before it, and the tokens of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from lrft.data.example import Row
from lrft.data.rows import Rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import each
from lrft.evaluation.tasks.multiple_choice import MultipleChoice, label_rows, parse_question
from lrft.registry.axes import TASKS
from lrft.registry.config import MethodConfig
from lrft.registry.errors import DataError

MOST = 26  # classes: one backward pass each


@dataclass(frozen=True)
class Choice:
    """A row as a classification.

    Attributes:
        prompt: all tokens before the one that decides, those included that the answers begin with alike.
        classes: the token of each label.
        gold: index of the right one.
    """

    prompt: list[int]
    classes: tuple[int, ...]
    gold: int
    labels: tuple[str, ...]


def task_of(tasks: Sequence[MethodConfig]) -> MultipleChoice:
    """The recipe's own task on multiple-choice rows, with its rows and format, or that of `data.eval`."""
    chosen = next((config for config in tasks if config.method == MultipleChoice.name), None)
    cls = TASKS.get(MultipleChoice.name)
    task: MultipleChoice = cls(chosen if chosen is not None else cls.Config(method=MultipleChoice.name))
    return task


def choices_of(subject: Subject, rows: Rows, renderer: Renderer) -> list[Choice]:
    """Every row as a classification over its labels.

    Raises:
        DataError: by file and line, a row that is none, or whose labels one token does not tell apart.
    """
    found = each(rows, lambda row: _choice(row, renderer))
    subject.check_lengths([len(one.prompt) + 1 for one in found], rows.where)
    return found


def _choice(row: Row, renderer: Renderer) -> Choice:
    question = parse_question(row)
    if not 2 <= len(question.labels) <= MOST:
        raise DataError(f"it has {len(question.labels)} labels, and a posterior is over 2 to {MOST} of them")
    asked = [renderer.question(made) for made in label_rows(row, question)]
    texts = [[*one.prompt, *one.answer] for one in asked]
    alike = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False)))
    deciding = [text[alike : alike + 1] for text in texts]
    tokens = tuple(token for one in deciding for token in one)
    if len(set(tokens)) < len(texts):
        raise DataError(
            f"its labels {', '.join(question.labels)} are not told apart by one token (the tokens after what they "
            f"share are {', '.join(map(str, tokens))}); use labels that begin unlike each other, such as A, B, C"
        )
    if alike == 0:
        raise DataError("nothing comes before the answer; use a format that writes a prompt")
    return Choice(texts[0][:alike], tokens, question.gold, question.labels)
