"""How far what was written of a classifier is from the run it came from, in the scores of held-out texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.export.fidelity import Difference
from lrft.ops.label_loss import label_losses, pair_losses


class Scoring(Protocol):
    """What scores whole texts: a run's model, or what was read back."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def scores(self, batch: Batch) -> Tensor:
        """Scores (documents, labels) in float32."""


@dataclass(frozen=True)
class Scores:
    """Scores of some texts on the CPU.

    Attributes:
        scores: (N, C) float32.
        labels: (N,) float32, what the rows say.
        pairs: each two texts are a row, the chosen one first.
    """

    scores: Tensor
    labels: Tensor
    pairs: bool


@torch.no_grad()
def scores_of(model: Scoring, batches: Iterable[Batch]) -> Scores:
    """The scores that a model gives the texts of some batches, in their order."""
    found, labels, pairs = [], [], False
    for batch in batches:
        stop.poll()
        assert batch.labels is not None
        found.append(model.scores(batch.to(model.device)).cpu())
        labels.append(batch.labels.cpu())
        pairs = batch.pairs
    return Scores(torch.cat(found), torch.cat(labels), pairs)


def compare_scores(run: Scores, theirs: Tensor) -> Difference:
    """Errors of scores, KL divergence and loss difference over texts.

    Args:
        theirs: (N, C) float32 scores that the files give the same texts.

    Returns:
        as `lrft.export.fidelity.compare`, a text being a position. The divergence of classes is in nats per text; that
        of a number is (a - b)^2 / 2, as of two normal distributions of variance 1.
    """
    ours, labels = run.scores, run.labels
    error = (ours - theirs).abs()
    if ours.shape[1] == 1:
        kl, changed, spread = error.square().mean() / 2, torch.zeros(()), ours.std(correction=0)
    else:
        a, b = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)  # in float32 it may be below 0
        kl = (a.exp() * (a - b)).sum(-1).mean()
        changed, spread = (ours.argmax(-1) != theirs.argmax(-1)).float().mean(), ours.std(dim=-1).mean()
    losses = pair_losses if run.pairs else label_losses
    before, after = (float(losses(scores, labels).mean()) for scores in (ours, theirs))
    return {
        "positions": len(labels),
        "logit_error_mean": float(error.mean()),
        "logit_error_max": float(error.max()),
        "logit_spread": float(spread),
        "kl_mean": float(kl),
        "loss_adapter": before,
        "loss_merged": after,
        "loss_difference": after - before,
        "top_token_changed": float(changed),
    }
