"""Multiple choice by log-likelihood: of each label's sentence, and of each option's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from lrft.core.axes import TASKS
from lrft.core.config import Field, MethodConfig, Source
from lrft.core.errors import DataError
from lrft.data.tokenize import Renderer
from lrft.evaluate.loglik import continuation_logprobs
from lrft.evaluate.subject import Subject
from lrft.evaluate.tasks._task import Task, TaskResult, share

ANSWER_FORMAT = re.compile(r"\s*Answer format:\s*(\S+)\s*$")


@dataclass(frozen=True)
class Question:
    """A parsed row.

    Attributes:
        stem: the instruction up to its options, question included.
        labels: what `answer` may be, such as answer1.
        options: the words of each label, (labels,); a label without words stands for itself (true, false).
        gold: index of the right one.
    """

    stem: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    gold: int


@TASKS.register
class MultipleChoice(Task):
    """The likeliest option, read in two ways.

    Rows: `instruction` ending in `Answer format: a/b/...`, before it `A: words B: words ...` or nothing (true/false);
    `output` is the sentence to learn and holds `answer`, one of the labels.
    Rule `multiple-choice-1`, prompts in the recipe's own format, zero-shot:
    `acc_label`: prompt = the whole instruction; continuation = `output` with each label in place of the answer.
    `acc`, `acc_norm`, `acc_norm_token`: prompt = the instruction up to the options, which are not shown;
    continuation = each option's words, by summed log-probability, that sum per UTF-8 byte, and per token.
    The stop token is not scored. The first of equals wins. WinoGrande's blank is not filled in.
    """

    version = "multiple-choice-1"

    class Config(MethodConfig):
        data: Source | None = Field(None, description="rows to score; by default data.eval")
        format: Any = Field(None, description="format of these rows; by default data.format")

        @field_validator("format")
        @classmethod
        def _known_format(cls, value: Any) -> Any:
            from lrft.core.axes import FORMATS
            from lrft.core.config import parse_choice

            return None if value is None else parse_choice(FORMATS, value)

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Parse every row, then score all labels, then all options."""
        rows, renderer = self.rows(subject, limit)
        questions = [parse_question(row, index) for index, row in enumerate(rows)]
        by_label = self.score(subject, renderer, [label_rows(r, q) for r, q in zip(rows, questions, strict=True)])
        by_words = self.score(subject, renderer, [option_rows(r, q) for r, q in zip(rows, questions, strict=True)])
        chosen = {
            "acc_label": [_best([total for total, _ in scores]) for scores in by_label],
            "acc": [_best([total for total, _ in scores]) for scores in by_words],
            "acc_norm": [
                _best([t / len(o.encode()) for (t, _), o in zip(scores, q.options, strict=True)])
                for scores, q in zip(by_words, questions, strict=True)
            ],
            "acc_norm_token": [_best([total / count for total, count in scores]) for scores in by_words],
        }
        metrics: dict[str, float] = {}
        for name, picks in chosen.items():
            metrics |= share(name, [pick == q.gold for pick, q in zip(picks, questions, strict=True)])
        samples = [
            _sample(row, question, by_label[i], chosen["acc_label"][i])
            for i, (row, question) in enumerate(zip(rows, questions, strict=True))
        ]
        return self.result(subject, metrics, samples, len(rows))

    def score(
        self, subject: Subject, renderer: Renderer, groups: Sequence[Sequence[dict[str, Any]]]
    ) -> list[list[tuple[float, int]]]:
        """(summed log-probability, tokens) of the target of every row of every group."""
        pairs = [prompt_and_target(renderer, row, subject.stop_ids) for group in groups for row in group]
        scores = iter(continuation_logprobs(subject, [p for p, _ in pairs], [c for _, c in pairs], self.name))
        return [[next(scores) for _ in group] for group in groups]


def parse_question(row: Any, index: int) -> Question:
    """The question of a row, its labels and their words.

    Raises:
        DataError: names the row and what is missing.
    """
    texts = {key: row.get(key) for key in ("instruction", "output", "answer")}
    missing = [key for key, value in texts.items() if not isinstance(value, str)]
    if missing:
        raise DataError(f"row {index}: {missing[0]} is missing; multiple_choice reads instruction, output and answer.")
    ending = ANSWER_FORMAT.search(texts["instruction"])
    if ending is None:
        raise DataError(f"row {index}: the instruction does not end in `Answer format: a/b/...`, which names the labels.")
    labels = tuple(ending[1].split("/"))
    if texts["answer"] not in labels or texts["answer"] not in texts["output"]:
        raise DataError(
            f"row {index}: the answer {texts['answer']!r} must be one of {', '.join(labels)} and stand in the output."
        )
    stem, options = split_options(texts["instruction"][: ending.start()], labels, index)
    return Question(stem, labels, options, labels.index(texts["answer"]))


def split_options(text: str, labels: Sequence[str], index: int) -> tuple[str, tuple[str, ...]]:
    """The text before the options, and the words after each `Label:`; the labels themselves when no option is shown.

    Raises:
        DataError: some labels have words and others none.
    """
    marks: list[re.Match[str]] = []
    for label in labels:
        start = marks[-1].end() if marks else 0
        found = re.compile(rf"\b{re.escape(label)}:", re.IGNORECASE).search(text, start)
        if found is None:
            break
        marks.append(found)
    if not marks:
        return text.rstrip(), tuple(labels)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    options = tuple(text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True))
    if len(marks) < len(labels) or not all(options):
        bad = labels[len(marks)] if len(marks) < len(labels) else labels[options.index("")]
        raise DataError(f"row {index}: the option {bad!r} has no words; every label of the answer format needs `{bad}: ...`.")
    return text[: marks[0].start()].rstrip(), options


def label_rows(row: Any, question: Question) -> list[dict[str, Any]]:
    """The row once per label, as if that label were its answer."""
    head, _, tail = row["output"].rpartition(row["answer"])
    return [{**row, "output": f"{head}{label}{tail}", "answer": label} for label in question.labels]


def option_rows(row: Any, question: Question) -> list[dict[str, Any]]:
    """The row once per option, the options hidden from its instruction and one of them as its output."""
    return [{**row, "instruction": question.stem, "output": option} for option in question.options]


def prompt_and_target(renderer: Renderer, row: dict[str, Any], stop_ids: set[int]) -> tuple[list[int], list[int]]:
    """A row's tokens before its first supervised one, and the supervised ones without the stop at their end."""
    raise NotImplementedError


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def _sample(row: Any, question: Question, scores: Sequence[tuple[float, int]], pick: int) -> dict[str, Any]:
    return {
        "prompt": row["instruction"],
        "output": question.labels[pick],
        "reference": question.labels[question.gold],
        "correct": pick == question.gold,
        "label_logprobs": {label: total for label, (total, _) in zip(question.labels, scores, strict=True)},
    }
