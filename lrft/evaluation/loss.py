"""Loss and perplexity on held-out rows, reduced to one sum per batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.team import ALONE, Team
from lrft.evaluation.batching import scoring
from lrft.evaluation.divide import divided
from lrft.evaluation.subject import Progress, Watch
from lrft.ops.label_loss import label_losses, pair_losses
from lrft.ops.loss import linear_cross_entropy, target_logprobs
from lrft.registry.errors import DataError, NumericalError

if TYPE_CHECKING:
    from lrft.model.causal_lm import CausalLM


@dataclass(frozen=True)
class LossResult:
    """Mean cross-entropy in nats per supervised token; of rows with labels per row, or the mean squared error.

    Of pairs that are scored it is the mean of -log sigmoid(r_chosen - r_rejected - margin), per pair.

    Attributes:
        loss: sum over all tokens / `tokens`, so every token weighs the same.
        perplexity: exp(loss).
        tokens: supervised tokens.
        rows: documents, however they were batched.
    """

    loss: float
    perplexity: float
    tokens: int
    rows: int


def held_out_loss(
    model: CausalLM,
    batches: Iterable[Batch],
    should_stop: Callable[[], bool] = stop.wanted,
    progress: Progress | None = None,
    total: int = 0,
    team: Team = ALONE,
) -> LossResult:
    """Score the supervised positions of `batches`. The logits of a chunk of positions exist at a time.

    Sums of batches are doubles and added in the order of the batches, so that any number of processes finds the same.

    Args:
        model: scored in eval mode; its modes are put back.
        batches: on any device; moved to the model's.
        should_stop: polled between batches.
        progress: told the number of documents done.
        total: documents in all, for `progress` and the message of a stop.
        team: the processes that share the batches; each gives all of them.

    Raises:
        DataError: nothing is supervised.
        NumericalError: the loss is not finite.
        EvaluationStopped: `should_stop` said so.
    """

    def score(batch: Batch) -> tuple[float, int, int]:
        return _batch_sum(model, batch.to(model.device)), _targets(batch), _documents(batch)

    with scoring(model):
        found = divided(batches, score, Watch("loss", total, should_stop, progress), _documents, team)
    tokens = sum(batch[1] for batch in found)
    rows = sum(batch[2] for batch in found)
    if tokens == 0:
        raise DataError(
            f"data.eval: none of the {rows} held-out rows has a supervised token; check data.format"
        )
    loss = sum(batch[0] for batch in found) / tokens
    if not math.isfinite(loss):
        raise NumericalError(
            f"data.eval: the held-out loss is {loss}; the model's weights or activations overflowed"
        )
    return LossResult(loss, perplexity(loss), tokens, rows)


def together(parts: Mapping[str, LossResult]) -> LossResult:
    """The loss over all tokens of several sources, every token weighing the same."""
    tokens = sum(part.tokens for part in parts.values())
    loss = sum(part.loss * part.tokens for part in parts.values()) / tokens
    return LossResult(loss, perplexity(loss), tokens, sum(part.rows for part in parts.values()))


def row_losses(model: CausalLM, batches: Iterable[Batch], team: Team = ALONE) -> list[tuple[float, int]]:
    """Summed cross-entropy in nats, and supervised tokens, of each document, in the order of the batches.

    Args:
        team: the processes that share the batches; each gives all of them, and finds all sums.

    Raises:
        NumericalError: one of them is not finite.
    """

    def score(batch: Batch) -> list[tuple[float, int]]:
        return _document_sums(model, batch.to(model.device))

    with scoring(model):
        parts = divided(batches, score, Watch("rows", 0), _documents, team)
    found = [row for part in parts for row in part]
    if bad := [index for index, (total, _) in enumerate(found) if not math.isfinite(total)]:
        raise NumericalError(
            f"data.eval: the loss of {len(bad)} of {len(found)} rows is no finite number; the model's weights or "
            "activations overflowed"
        )
    return found


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a double cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _documents(batch: Batch) -> int:
    return len(batch.examples if batch.pairs else batch.documents)


def _targets(batch: Batch) -> int:
    """What the sum of a batch's loss is divided by."""
    return len(batch.examples) if batch.pairs else batch.targets.numel()


def _check_rows(batch: Batch) -> None:
    """Refuse texts to embed, whose loss is by what other rows hold.

    Raises:
        DataError: the batch holds some.
    """
    if batch.texts:
        raise DataError(
            "data.eval: the rows are texts to embed, which have no loss by themselves; use a task on them"
        )


def _label_losses(model: CausalLM, batch: Batch) -> Tensor:
    """The loss of every text, or of every pair, of a batch with labels, float32."""
    assert batch.labels is not None
    losses = pair_losses if batch.pairs else label_losses
    return losses(model.scores(batch), batch.labels)


def _document_sums(model: CausalLM, batch: Batch) -> list[tuple[float, int]]:
    _check_rows(batch)
    if batch.labels is not None:
        return [(loss, 1) for loss in _label_losses(model, batch).tolist()]
    supervised = batch.supervised_rows(model.hidden(batch))
    logprobs = target_logprobs(supervised, model.head, batch.targets)
    sums = batch.document_sums(-logprobs.double())
    tokens = batch.document_sums(torch.ones_like(batch.targets))
    return list(zip(sums.tolist(), tokens.tolist(), strict=True))


def _batch_sum(model: CausalLM, batch: Batch) -> float:
    """Summed loss of one batch; reading it is the batch's only wait for the device."""
    _check_rows(batch)
    if batch.labels is not None:
        return float(_label_losses(model, batch).sum())
    supervised = batch.supervised_rows(model.hidden(batch))
    return float(linear_cross_entropy(supervised, model.head, batch.targets))
