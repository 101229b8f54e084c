"""Which of its rows a client finds hardest, by a measure of how wrong every token is predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.model.causal_lm import CausalLM
from lrft.ops.loss import CHUNK

Measure = Callable[[Tensor, Tensor], Tensor]


def kept_of(rows: int, share: float) -> int:
    """How many of `rows` are kept: their share, rounded down, at least one."""
    return max(1, int(share * rows))


def hardest(
    model: CausalLM, rows: Sequence[Encoded], share: float, measure: Measure, batch_tokens: int, pad_id: int
) -> list[int]:
    """The places of the rows that are kept, rising: those whose targets are predicted worst on average.

    Of equal ones the first. The model computes as in evaluation: without dropout.

    Args:
        measure: (N, V) logits in float32 and (N,) targets -> (N,).
    """
    errors = row_errors(model, rows, measure, batch_tokens, pad_id)
    order = sorted(range(len(rows)), key=lambda place: (-errors[place], place))
    return sorted(order[: kept_of(len(rows), share)])


@torch.no_grad()
def row_errors(
    model: CausalLM, rows: Sequence[Encoded], measure: Measure, batch_tokens: int, pad_id: int
) -> list[float]:
    """The mean of the measure over the targets of each row."""
    found, trained = [0.0] * len(rows), model.training
    model.eval()
    try:
        for host in eval_batches(rows, batch_tokens, pad_id):
            batch = host.to(model.device)
            hidden = batch.supervised_rows(model.hidden(batch))
            parts = zip(hidden.split(CHUNK), batch.targets.split(CHUNK), strict=True)
            values = torch.cat([measure(model.head.logits(part).float(), wanted) for part, wanted in parts])
            sums, counts = batch.document_sums(values), batch.document_sums(torch.ones_like(values))
            for place, mean in zip(batch.examples, (sums / counts).tolist(), strict=True):
                found[place] = mean
    finally:
        model.train(trained)
    return found
