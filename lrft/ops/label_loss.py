"""What the scores of whole texts cost, beside their labels or beside one another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def label_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """What each text's scores cost: cross-entropy over its classes, or of a single score the squared error.

    Args:
        scores: (N, C) float32.
        labels: (N,) float32, numbers of classes, or with C = 1 the numbers wanted.

    Returns:
        (N,) float32.
    """
    if scores.shape[1] == 1:
        return (scores[:, 0] - labels) ** 2
    return -scores.log_softmax(-1).gather(1, labels.long()[:, None])[:, 0]


def pair_losses(scores: Tensor, margins: Tensor) -> Tensor:
    """What each pair costs by the model of Bradley and Terry: -log sigmoid(r_chosen - r_rejected - margin).

    Args:
        scores: (2 P, 1) float32, of each pair the chosen text first.
        margins: (2 P,) float32, of each pair the margin first.

    Returns:
        (P,) float32.
    """
    return -F.logsigmoid(scores[0::2, 0] - scores[1::2, 0] - margins[0::2])
