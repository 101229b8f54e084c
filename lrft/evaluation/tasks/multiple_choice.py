"""Multiple choice by log-likelihood: of each label's sentence, and of each option's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrft.data.example import Row, with_columns
from lrft.data.rows import Rows
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import thinking
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.errors import DataError
from lrft.registry.json import Json

ANSWER_FORMAT = re.compile(r"(?<!\s)\s*Answer format:\s*(\S+)\s*$")


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
class MultipleChoice(OfRows):
    """Multiple choice by log-likelihood: of each label's sentence, and of each option's own words.

        acc_label      = share of rows whose gold label is argmax_i log p(output with label i | whole instruction)
        acc            = ... whose gold option is argmax_i log p(words_i | instruction up to the options)
        acc_norm       = ... argmax_i of that log p / UTF-8 bytes of words_i
        acc_norm_token = ... argmax_i of that log p / tokens of words_i

    Prompt: `multiple-choice-1`: in the recipe's own format, or in the task's own `format`, zero-shot. Rows are those of
    `data.eval`, or the task's own `data`: `instruction` ends in `Answer format: a/b/...`, with `A: words B: words ...`
    or nothing before it; `output` is the sentence to learn and holds `answer`, one of the labels. A label without words
    stands for itself.
    Score: log p is summed over the continuation's tokens; the stop token is not scored. The first of equals wins. In
    `acc`, `acc_norm` and `acc_norm_token` the options are not shown. WinoGrande's blank is not filled in.
    Source: rows as in the commonsense files of LLM-Adapters (AGI-Edgerunners/LLM-Adapters).
    """

    aliases = {
        "choice mcq": "tasks: [multiple_choice]",
    }

    version = "multiple-choice-1"
    better = {"acc_label": "higher", "acc": "higher", "acc_norm": "higher", "acc_norm_token": "higher"}
    right_is = "acc_label"

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Parse every row, then score all labels, then all options."""
        rows = self.rows(subject, limit)
        questions = each(rows, parse_question)
        by_label = self.scores(
            subject, rows, [label_rows(r, q) for r, q in zip(rows, questions, strict=True)]
        )
        by_words = self.scores(
            subject, rows, [option_rows(r, q) for r, q in zip(rows, questions, strict=True)]
        )
        picks = {
            "acc_label": [_best([total for total, _ in scores]) for scores in by_label],
            "acc": [_best([total for total, _ in scores]) for scores in by_words],
            "acc_norm": [_best(_per_byte(s, q)) for s, q in zip(by_words, questions, strict=True)],
            "acc_norm_token": [_best([total / count for total, count in scores]) for scores in by_words],
        }
        metrics: dict[str, float] = {}
        right: list[dict[str, Json]] = [{} for _ in questions]
        for name, chosen in picks.items():
            hits = [pick == q.gold for pick, q in zip(chosen, questions, strict=True)]
            metrics |= share(name, hits)
            right = [{**one, name: hit} for one, hit in zip(right, hits, strict=True)]
        samples = [
            {**_sample(row, question, scores, pick), "right": by_score}
            for row, question, scores, pick, by_score in zip(
                rows, questions, by_label, picks["acc_label"], right, strict=True
            )
        ]
        renderer = self.renderer(subject)
        protocol = thinking([renderer.question(row) for row in rows])
        return self.result(subject, rows, metrics, samples, **protocol)

    def scores(
        self, subject: Subject, rows: Rows, candidates: Sequence[list[Row]]
    ) -> list[list[tuple[float, int]]]:
        """(summed log-probability, tokens) of the answer of every candidate of every row."""
        renderer = self.renderer(subject)
        places = [rows.where(index) for index, group in enumerate(candidates) for _ in group]
        listed = replace(rows, rows=[candidate for group in candidates for candidate in group], lines=None)
        asked = [renderer.question(candidate) for candidate in listed]
        found = iter(
            continuation_logprobs(
                subject,
                [q.prompt for q in asked],
                [q.answer for q in asked],
                self.name,
                places.__getitem__,
                [q.features for q in asked],
            )
        )
        return [[next(found) for _ in group] for group in candidates]


def parse_question(row: Row) -> Question:
    """The question of a row, its labels and their words.

    Raises:
        DataError: what is missing.
    """
    texts = {
        key: text for key in ("instruction", "output", "answer") if isinstance(text := row.get(key), str)
    }
    missing = [key for key in ("instruction", "output", "answer") if key not in texts]
    if missing:
        raise DataError(f"{missing[0]} is missing; multiple_choice reads instruction, output and answer.")
    ending = ANSWER_FORMAT.search(texts["instruction"])
    if ending is None:
        raise DataError("the instruction does not end in `Answer format: a/b/...`, which names the labels.")
    labels = tuple(ending[1].split("/"))
    if texts["answer"] not in labels or texts["answer"] not in texts["output"]:
        raise DataError(
            f"the answer {texts['answer']!r} must be one of {', '.join(labels)} and stand in the output."
        )
    stem, options = split_options(texts["instruction"][: ending.start()], labels)
    return Question(stem, labels, options, labels.index(texts["answer"]))


def split_options(text: str, labels: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The text before the options, and the words after each `Label:`; without any, the labels themselves.

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
        raise DataError(
            f"the option {bad!r} has no words; every label of the answer format needs `{bad}: ...`."
        )
    return text[: marks[0].start()].rstrip(), options


def label_rows(row: Row, question: Question) -> list[Row]:
    """The row once per label, as if that label were its answer."""
    head, _, tail = str(row["output"]).rpartition(str(row["answer"]))
    return [
        with_columns(row, {"output": f"{head}{label}{tail}", "answer": label}) for label in question.labels
    ]


def option_rows(row: Row, question: Question) -> list[Row]:
    """The row once per option, the options hidden from its instruction and one of them as its output."""
    return [
        with_columns(row, {"instruction": question.stem, "output": option}) for option in question.options
    ]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def _per_byte(scores: Sequence[tuple[float, int]], question: Question) -> list[float]:
    return [total / len(words.encode()) for (total, _), words in zip(scores, question.options, strict=True)]


def _sample(row: Row, question: Question, scores: Sequence[tuple[float, int]], pick: int) -> Row:
    return {
        "prompt": row["instruction"],
        "output": question.labels[pick],
        "reference": question.labels[question.gold],
        "correct": pick == question.gold,
        "label_logprobs": {label: total for label, (total, _) in zip(question.labels, scores, strict=True)},
    }
