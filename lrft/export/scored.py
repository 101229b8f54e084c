"""How far a merged classifier is from the run it came from, in the scores of held-out texts."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.export.fidelity import Difference
from lrft.ops.label_loss import label_losses, pair_losses


def compare_scores(ours: Tensor, theirs: Tensor, labels: Tensor, pairs: bool = False) -> Difference:
    """Errors of scores, KL divergence and loss difference over texts.

    Args:
        ours, theirs: (N, C) float32 scores of the run and of the files.
        labels: (N,) float32, what the rows say.
        pairs: each two texts are a row, the chosen one first.

    Returns:
        as `lrft.export.fidelity.compare`, a text being a position. The divergence of classes is in nats per text; that
        of a number is (a - b)^2 / 2, as of two normal distributions of variance 1.
    """
    error = (ours - theirs).abs()
    if ours.shape[1] == 1:
        kl, changed, spread = error.square().mean() / 2, torch.zeros(()), ours.std(correction=0)
    else:
        a, b = ours.log_softmax(-1), theirs.log_softmax(-1)
        kl = (a.exp() * (a - b)).sum(-1).mean()
        changed, spread = (ours.argmax(-1) != theirs.argmax(-1)).float().mean(), ours.std(dim=-1).mean()
    losses = pair_losses if pairs else label_losses
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
