"""Log-probabilities of given continuations, for multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lrft.core.features import Features
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.evaluation.batching import scoring, token_batches
from lrft.evaluation.divide import divided
from lrft.evaluation.subject import Subject
from lrft.ops.loss import target_logprobs
from lrft.registry.errors import DataError, NumericalError


def continuation_logprobs(
    subject: Subject,
    prompts: Sequence[list[int]],
    continuations: Sequence[list[int]],
    what: str = "options",
    where: Callable[[int], str] = "row {}".format,
    features: Sequence[Features] | None = None,
) -> list[tuple[float, int]]:
    """Sum of log p(token | all before it) over every continuation, and the number of its tokens.

    Args:
        prompts, continuations: token ids, one of each per pair; batched by tokens here, order kept.
        what: the name the progress display shows.
        where: names a pair in an error.
        features: of the row of each pair, for adapters that go by them.

    Raises:
        UsageError: the adapter goes by features, and none are given.
        DataError: an empty prompt or continuation, or a pair longer than the model's positions.
        NumericalError: a log-probability is no finite number.
        EvaluationStopped: a signal came.
    """
    for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt or not continuation:
            empty = "continuation" if prompt else "prompt"
            raise DataError(
                f"{where(index)}: the {empty} has no token; give it a text, or use a format that writes one"
            )
    subject.check_features(features, what)
    lengths = [len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)]
    subject.check_lengths([subject.model.virtual_now + length for length in lengths], where)

    def score(indices: list[int]) -> list[float]:
        rows = [_row(prompts[i], continuations[i], () if features is None else features[i]) for i in indices]
        sums = _sums(subject, rows)
        for index, total in zip(indices, sums, strict=True):
            if not math.isfinite(total):
                raise NumericalError(
                    f"{where(index)}: the log-probability of an answer is {total}, so there is no score; the "
                    "model's weights or activations overflowed"
                )
        return sums

    scores: list[tuple[float, int]] = [(0.0, 0)] * len(lengths)
    batches = token_batches(lengths, subject.batch_tokens)
    with scoring(subject.model):
        found = divided(batches, score, subject.watch(what, len(lengths)), len, subject.team)
    for indices, sums in zip(batches, found, strict=True):
        for index, total in zip(indices, sums, strict=True):
            scores[index] = (total, len(continuations[index]))
    return scores


def _row(prompt: list[int], continuation: list[int], features: Features) -> Encoded:
    supervised = [False] * len(prompt) + [True] * len(continuation)
    return Encoded(prompt + continuation, supervised, features=features)


def _sums(subject: Subject, rows: list[Encoded]) -> list[float]:
    """One number per pair, summed in double precision on the host after one transfer."""
    batch = collate([[row] for row in rows], subject.pad_id, None, [[index] for index in range(len(rows))])
    batch = batch.to(subject.model.device)
    supervised = batch.supervised_rows(subject.model.hidden(batch))
    logprobs = target_logprobs(supervised, subject.model.head, batch.targets).double().cpu()
    return [float(part.sum()) for part in logprobs.split([row.targets for row in rows])]
