"""Log-probabilities of whole answers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.run import LanguageModel
from lrft.ops.loss import Head, target_logprobs
from lrft.registry.errors import DataError, RecipeError

MOST = -1e-6  # of a log-probability: float32 has nothing left beside a probability of 1


def token_logprobs(model: LanguageModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log p of every target, (targets,) float32; of logits that are divided by the temperature.

    Raises:
        RecipeError: a temperature, of a head that caps its logits.
    """
    rows = batch.supervised_rows(model.hidden(batch))
    return target_logprobs(rows, _tempered(model.head, temperature), batch.targets)


def _tempered(head: Head, temperature: float) -> Head:
    if temperature == 1:
        return head
    if head.softcap is not None:
        raise RecipeError(
            "this model caps its logits, which are then not divided; write 1", "objective.temperature"
        )
    return replace(head, scale=head.scale / temperature)


def answer_logprobs(model: LanguageModel, batch: Batch, mean: bool = False) -> Tensor:
    """Log p of every document's answer, its sum or its mean over the answer's tokens, (documents,) float32."""
    logprobs = token_logprobs(model, batch)
    sums = batch.document_sums(logprobs)
    return sums / batch.document_sums(torch.ones_like(logprobs)) if mean else sums


def check_pairs(batch: Batch, name: str) -> None:
    """Refuse a batch that does not hold two answers to each prompt."""
    if len(batch.documents) != 2 * len(batch.examples):
        raise DataError(
            f"objective.method: {name} compares two answers to a prompt, but {len(batch.examples)} rows hold "
            f"{len(batch.documents)} texts; write data.format: preference"
        )


def check_judged(batch: Batch, name: str) -> None:
    """Refuse a batch that does not say which answers are wanted."""
    if len(batch.wanted) != len(batch.documents):
        raise DataError(
            f"objective.method: {name} learns from answers that are wanted and others that are not, and the rows do "
            "not say which they are; write data.format: unpaired"
        )


def log_rest(logprob: Tensor) -> Tensor:
    """Log of 1 - p from log p, exact in float32 for p near 0 and near 1, where log p is held below `MOST`."""
    logprob = logprob.clamp(max=MOST)
    likely = logprob > -math.log(2)
    # Each form sees only where it is exact: a gradient of the other one, though masked, could be infinite.
    near_one = torch.log(-torch.expm1(torch.where(likely, logprob, MOST)))
    near_zero = torch.log1p(-torch.exp(torch.where(likely, -1.0, logprob)))
    return torch.where(likely, near_one, near_zero)
