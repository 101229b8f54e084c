"""The label of a whole text by the model's score head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lrft.data.encode import encode_all
from lrft.data.encoded import Encoded
from lrft.data.labels import name_of
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import scores_of, shortened
from lrft.evaluation.tasks._task import OfRows, TaskResult, share
from lrft.registry.axes import TASKS
from lrft.registry.errors import DataError, NumericalError
from lrft.registry.json import Json


@TASKS.register
class Classification(OfRows):
    """The label that the score head gives the most, beside that of the row.

        label    = argmax_c (S h)_c
        accuracy = mean over rows of [label = gold]
        f1       = mean over classes of 2 TP / (2 TP + FP + FN)      (macro)
        mse      = mean over rows of (S h - gold)^2                  where `model.head` has one label
        pearson  = correlation of S h and gold over the rows         likewise

    Prompt: `classification-1`: the row in the recipe's format, or in the task's own `format`, encoded as for training;
    h is the hidden state of its last token. Rows are those of `data.eval`, or the task's own `data`.
    Score: rows that `data.too_long` drops are left out and counted (`left_out`), cut ones are scored cut (`truncated`).
    The first of equal scores wins. f1 is over the classes that stand in the rows or among the answers. pearson is left
    out where the numbers or the scores are all one. f1, mse and pearson have no standard error.
    Source: standard.
    """

    aliases = {
        "macro_f1 text_classification": "tasks: [classification]",
    }

    version = "classification-1"
    requires = {"score_head"}
    better = {"accuracy": "higher", "f1": "higher", "mse": "lower", "pearson": "higher"}
    right_is = "accuracy"

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, then score every row once.

        Raises:
            DataError: a row has no label, or there is none to score.
            NumericalError: a score is no finite number.
        """
        rows = self.rows(subject, limit)
        encoded = encode_all(rows, self.renderer(subject, subject.renderer.too_long))
        subject.check_lengths([len(row.input_ids) for row in encoded], rows.where)
        if any(row.parts for row in encoded):
            raise DataError("the rows are pairs, which have no label; write eval.tasks: [pairwise]")
        kept = [index for index, row in enumerate(encoded) if row.label is not None]
        gold = [label for row in encoded if (label := row.label) is not None]
        if not kept:
            raise DataError(
                f"none of the {len(rows)} rows has a label to score; check data.format and too_long"
            )
        scores = self._scores(subject, encoded)
        for index in kept:
            if not all(map(math.isfinite, scores[index])):
                raise NumericalError(f"{rows.where(index)}: a score of the row is no finite number")
        metrics, given = _metrics([scores[index] for index in kept], gold)
        metrics |= shortened(encoded, kept)
        labels = subject.model.labels
        samples: list[dict[str, Json]] = [
            {
                "prompt": str(subject.tokenizer.decode(encoded[index].input_ids)),
                "output": name_of(answer, labels),
                "reference": name_of(right, labels),
                **({} if len(labels) == 1 else {"correct": answer == right}),
                "scores": dict(zip(labels, scores[index], strict=True)),
            }
            for index, answer, right in zip(kept, given, gold, strict=True)
        ]
        return self.result(subject, rows, metrics, samples, n=len(kept), labels=list(labels))

    def _scores(self, subject: Subject, encoded: Sequence[Encoded]) -> dict[int, list[float]]:
        """Row -> its scores."""
        return {
            index: row
            for rows, given in scores_of(subject, encoded, self.name)
            for index, row in zip(rows, given, strict=True)
        }


def _metrics(
    scores: Sequence[Sequence[float]], gold: Sequence[float]
) -> tuple[dict[str, float], Sequence[float]]:
    """The numbers, and what each row is given: its class, or its number."""
    if len(scores[0]) == 1:
        given = [row[0] for row in scores]
        mse = sum((a - b) ** 2 for a, b in zip(given, gold, strict=True)) / len(gold)
        together = pearson(given, gold)
        return {"mse": mse, **({} if together is None else {"pearson": together})}, given
    classes = [float(max(range(len(row)), key=row.__getitem__)) for row in scores]
    accuracy = share("accuracy", [a == b for a, b in zip(classes, gold, strict=True)])
    return {**accuracy, "f1": macro_f1(classes, gold)}, classes


def macro_f1(given: Sequence[float], gold: Sequence[float]) -> float:
    """The mean over all classes that occur of the harmonic mean of precision and recall."""
    kinds = sorted({*given, *gold})
    hits = {kind: sum(a == b == kind for a, b in zip(given, gold, strict=True)) for kind in kinds}
    return sum(2 * hits[kind] / (given.count(kind) + gold.count(kind)) for kind in kinds) / len(kinds)


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of two rows of numbers; None where either is constant."""
    if len({*a}) == 1 or len({*b}) == 1:  # of which the mean may be another number, by rounding
        return None
    n = len(a)
    x, y = ([value - sum(values) / n for value in values] for values in (a, b))
    under = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
    return sum(p * q for p, q in zip(x, y, strict=True)) / under if under else None
