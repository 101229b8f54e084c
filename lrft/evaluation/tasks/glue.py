"""GLUE by the likelihood of label words, with the metrics of each of its tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from lrft.data.example import Row, with_columns
from lrft.data.sources import Rows
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import thinking
from lrft.evaluation.tasks._task import Task, TaskResult, each, share
from lrft.registry.axes import FORMATS, TASKS
from lrft.registry.config import Choice, Field, FormatConfig, Literal, MethodConfig, Source, model_validator
from lrft.registry.errors import DataError
from lrft.registry.json import Json

NUMBERED = ("0", "1")
ENTAILS = ("entailment", "not_entailment")
# Labels in the order of their numbers; data sets write either.
LABELS = {
    "cola": NUMBERED,
    "sst2": NUMBERED,
    "mrpc": NUMBERED,
    "qqp": NUMBERED,
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ENTAILS,
    "rte": ENTAILS,
    "wnli": NUMBERED,
}
CORRELATED, F1 = ("cola",), ("mrpc", "qqp")


@TASKS.register
class GLUE(Task):
    """The label whose words are likeliest after the prompt.

        label    = argmax_i log p(answer with label i in the column `column` | prompt)
        accuracy = mean over rows of [label = gold]
        f1       = 2 TP / (2 TP + FP + FN), label 1 being the positive one            (mrpc, qqp)
        mcc      = (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))    (cola)

    Prompt: `glue-labels-1`: the row in the recipe's format, or in the task's own `format`, zero-shot, once for each
    label of the `subset`, the column `column` holding that label as the rows write it (its number or its name) or, with
    `words`, the word given for it. The format has to write that column into the answer. Rows are those of `data.eval`,
    or the task's own `data`.
    Score: log p is summed over the tokens of the answer; the stop token is not scored; the first of equals wins. f1 is
    0 without a true positive, mcc is 0 where a row or a column of the table is empty, and neither has a standard
    error. STS-B, a regression, is not here.
    Source: Wang et al., "GLUE", 2018, arXiv 1804.07461, for the metrics.
    """

    aliases = {
        "glue sst2 sst-2": "tasks: [{method: glue, subset: sst2}]",
        "rte": "tasks: [{method: glue, subset: rte}]",
        "mrpc": "tasks: [{method: glue, subset: mrpc}]",
        "mnli": "tasks: [{method: glue, subset: mnli}]",
        "qnli": "tasks: [{method: glue, subset: qnli}]",
        "qqp": "tasks: [{method: glue, subset: qqp}]",
    }

    version = "glue-labels-1"
    better = {"accuracy": "higher", "f1": "higher", "mcc": "higher"}
    right_is = "accuracy"

    class Config(MethodConfig):
        subset: Literal["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"] = Field(
            description="which of the tasks: decides the labels and the metrics"
        )
        data: Source | None = Field(None, description="rows to score; by default data.eval")
        format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
            None, description="format of these rows; by default data.format"
        )
        column: str = Field("label", min_length=1, description="column of the label")
        words: list[str] | None = Field(
            None,
            description="what stands for each label, in the order of their numbers; by default what rows hold",
        )

        @model_validator(mode="after")
        def _check_words(self) -> GLUE.Config:
            count = 3 if self.subset == "mnli" else 2
            if self.words is not None and (len(self.words) != count or len(set(self.words)) != count):
                raise ValueError(f"words of {self.subset} are {count}, all different, one a label")
            return self

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Read every label, then score all of them for every row."""
        rows = self.rows(subject, limit)
        gold = each(rows, self.gold)
        scores = self.scores(subject, rows, each(rows, self.candidates))
        picks = [max(range(len(row)), key=row.__getitem__) for row in scores]
        metrics = share("accuracy", [pick == right for pick, right in zip(picks, gold, strict=True)])
        if self.config.subset in CORRELATED:
            metrics["mcc"] = matthews(picks, gold)
        if self.config.subset in F1:
            metrics["f1"] = f1(picks, gold)
        labels = LABELS[self.config.subset]
        renderer = self.renderer(subject)
        questions = [renderer.question(row) for row in rows]
        samples: list[dict[str, Json]] = [
            {
                "prompt": str(subject.tokenizer.decode(question.prompt)),
                "output": labels[pick],
                "reference": labels[right],
                "correct": pick == right,
                "label_logprobs": dict(zip(labels, row, strict=True)),
            }
            for question, row, pick, right in zip(questions, scores, picks, gold, strict=True)
        ]
        return self.result(subject, rows, metrics, samples, **thinking(questions))

    def gold(self, row: Row) -> int:
        """The number of the row's label.

        Raises:
            DataError: it has none of the subset's.
        """
        labels = LABELS[self.config.subset]
        held = row.get(self.config.column)
        written = str(held).strip()
        if written in labels:
            return labels.index(written)
        if written.isdigit() and int(written) < len(labels):
            return int(written)
        known = " or ".join(dict.fromkeys([*labels, *map(str, range(len(labels)))]))
        raise DataError(
            f"column {self.config.column!r} holds {held!r}; a label of {self.config.subset} is {known}, and test "
            "splits have none"
        )

    def candidates(self, row: Row) -> list[Row]:
        """The row once for each label."""
        labels = LABELS[self.config.subset]
        numbers = str(row[self.config.column]).strip() not in labels
        words = self.config.words or [str(i) if numbers else label for i, label in enumerate(labels)]
        return [with_columns(row, {self.config.column: word}) for word in words]

    def scores(self, subject: Subject, rows: Rows, candidates: Sequence[list[Row]]) -> list[list[float]]:
        """The log-probability of the answer of every candidate of every row.

        Raises:
            DataError: the answers or the prompts show that the format does not write the label into the answer.
        """
        renderer = self.renderer(subject)
        prompts, answers, features, places = [], [], [], []
        for index, group in enumerate(candidates):
            asked = [renderer.question(candidate) for candidate in group]
            apart = len({tuple(one.answer) for one in asked}) == len(asked)
            if not apart or len({tuple(one.prompt) for one in asked}) > 1:
                raise DataError(
                    f"{rows.where(index)}: the label stands in column {self.config.column!r}, which the "
                    f"{renderer.format.name} format does not write into the answer alone; give the task a `format` "
                    "such as {method: columns, prompt: '{sentence} ->', completion: ' {label}'}"
                )
            prompts += [one.prompt for one in asked]
            answers += [one.answer for one in asked]
            features += [one.features for one in asked]
            places += [rows.where(index)] * len(asked)
        found = iter(
            continuation_logprobs(subject, prompts, answers, self.name, places.__getitem__, features)
        )
        return [[next(found)[0] for _ in group] for group in candidates]


def _table(picks: Sequence[int], gold: Sequence[int]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives, label 1 being positive."""
    pairs = list(zip(picks, gold, strict=True))
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1)), pairs.count((0, 0))


def f1(picks: Sequence[int], gold: Sequence[int]) -> float:
    """The harmonic mean of precision and recall of label 1; 0 without a true positive."""
    tp, fp, fn, _ = _table(picks, gold)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def matthews(picks: Sequence[int], gold: Sequence[int]) -> float:
    """Matthews' correlation of two binary labels; 0 where either is constant."""
    tp, fp, fn, tn = _table(picks, gold)
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(under) if under else 0.0
