"""How far a model's word on whether answers are right can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lrft.core.batch import Batch
from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.replies import reply_tokens
from lrft.evaluation.batching import scoring
from lrft.evaluation.divide import divided
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import encode_texts, shortened
from lrft.evaluation.tasks._task import OfRows, TaskResult, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import DataError, NumericalError
from lrft.registry.json import Json


@TASKS.register
class Confidence(OfRows):
    """Calibration of the confidence that a model has in answers, which it is asked for after each.

        c        = p(yes) / (p(no) + p(yes)) of the replies' first tokens, y = 1 where the answer is right, else 0
        ece      = sum over bins b of n_b / n |mean of c in b - mean of y in b|,  `bins` of one width, the upper edge in
        auroc    = share of pairs of a right and a wrong answer of which the right one has the higher c, equal ones half
        brier    = mean of (c - y)^2,  nll = -mean of log of c or of 1 - c, as y is
        accuracy = share of rows with [c > 1/2] = y,  right = mean of y

    Prompt: `confidence-1`: the row in the recipe's format, or in the task's own `format`, with the question of its
    setting `query`, encoded as for training. Rows are those of `data.eval`, or the task's own `data`.
    Score: rows that `data.too_long` drops are left out and counted (`left_out`), cut ones are scored cut (`truncated`).
    auroc is left out where all answers are right, or none. ece, auroc, brier and nll have no standard error.
    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599 (ece); as Kapoor et al.,
    2024, arXiv 2406.08391, ask it.
    """

    aliases = {
        "ece auroc brier expected_calibration_error": "tasks: [confidence]",
    }

    version = "confidence-1"
    better = {"ece": "lower", "auroc": "higher", "brier": "lower", "nll": "lower", "accuracy": "higher"}
    right_is = "accuracy"

    class Config(OfRows.Config):
        bins: int = Field(10, gt=0, description="of the calibration error")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, then ask once about every row.

        Raises:
            DataError: the rows do not ask whether their answer is right, or there is none to score.
            NumericalError: a confidence is no number.
        """
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject, subject.renderer.too_long)
        if "judged" not in renderer.format.provides:
            raise DataError(
                f"the rows of the {renderer.format.name} format do not say whether their answer is right; write "
                "format: unpaired, with a query"
            )
        replies = reply_tokens(renderer, next(iter(rows)))
        encoded, kept = encode_texts(subject, rows, renderer, "has a reply")
        found = self._confidences(subject, encoded, replies)
        for index in kept:
            if not math.isfinite(found[index]):
                raise NumericalError(f"{rows.where(index)}: the confidence in the answer is no finite number")
        confidence = [found[index] for index in kept]
        right = [bool(encoded[index].wanted) for index in kept]
        metrics = measures(confidence, right, self.config.bins) | shortened(encoded, kept)
        samples = [_sample(subject, encoded[index], found[index]) for index in kept]
        return self.result(subject, rows, metrics, samples, n=len(kept), replies=list(replies))

    def _confidences(
        self, subject: Subject, encoded: Sequence[Encoded], replies: tuple[int, int]
    ) -> dict[int, float]:
        """Row -> c."""
        asked = [row.documents()[1] if row.targets else row for row in encoded]
        batches = list(eval_batches(asked, subject.batch_tokens, subject.pad_id))

        def score(batch: Batch) -> list[float]:
            there = batch.to(subject.model.device)
            counts = there.document_sums(torch.ones_like(there.targets))
            at = there.supervised.index_select(0, counts.cumsum(0) - counts)  # the first target of each text
            hidden = subject.model.hidden(there).flatten(0, 1).index_select(0, at)
            logits = subject.model.head.logits(hidden)[:, list(replies)]
            return logits.double().softmax(-1)[:, 1].tolist()

        with scoring(subject.model):
            watch = subject.watch(self.name, len(encoded))
            parts = divided(batches, score, watch, lambda batch: len(batch.examples), subject.team)
        return {
            index: value
            for batch, values in zip(batches, parts, strict=True)
            for index, value in zip(batch.examples, values, strict=True)
        }


def measures(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> dict[str, float]:
    """All numbers of a list of confidences and of whether the answers are right."""
    n, pairs = len(right), list(zip(confidence, right, strict=True))
    losses = [-math.log(max(c if y else 1 - c, 1e-300)) for c, y in pairs]
    ranked = auroc(confidence, right)
    return {
        "ece": ece(confidence, right, bins),
        **({} if ranked is None else {"auroc": ranked}),
        "brier": sum((c - y) ** 2 for c, y in pairs) / n,
        "nll": sum(losses) / n,
        **share("accuracy", [(c > 0.5) == y for c, y in pairs]),
        "right": sum(right) / n,
    }


def ece(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: bin k of K holds what is above (k - 1) / K, up to k / K; the first one 0 too."""
    sums = [[0.0, 0.0] for _ in range(bins)]
    for c, y in zip(confidence, right, strict=True):
        place = max(0, min(bins, math.ceil(c * bins)) - 1)
        sums[place][0] += c
        sums[place][1] += y
    return sum(abs(claimed - found) for claimed, found in sums) / len(right)


def auroc(confidence: Sequence[float], right: Sequence[bool]) -> float | None:
    """Area under the curve of true over false positives, from ranks; None where one kind is missing."""
    count = sum(right)
    if count in (0, len(right)):
        return None
    order = sorted(range(len(right)), key=confidence.__getitem__)
    total, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and confidence[order[end]] == confidence[order[start]]:
            end += 1
        mean = (start + 1 + end) / 2  # of the ranks start + 1 to end, which are equal
        total += mean * sum(right[index] for index in order[start:end])
        start = end
    return (total - count * (count + 1) / 2) / (count * (len(right) - count))


def _sample(subject: Subject, row: Encoded, confidence: float) -> dict[str, Json]:
    return {
        "prompt": str(subject.tokenizer.decode(row.documents()[0].input_ids)),
        "output": confidence,
        "reference": row.wanted,
        "correct": (confidence > 0.5) == row.wanted,
    }
