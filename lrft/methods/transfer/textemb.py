"""Tasks whose texts are alike, on average."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.transfer import TransferEstimate
from lrft.registry.axes import TRANSFER_ESTIMATES
from lrft.registry.errors import DataError


@TRANSFER_ESTIMATES.register
class TextEmb(TransferEstimate):
    """Text embeddings of two data sets: the angle between their means.

        e_D = 1/|D| sum over rows x of D of h(x)
        score = cos(e_source, e_target)

    with h(x) the mean of the base's last hidden states over the tokens of the row. Nothing is trained, and a source
    needs no model.

    Needs: an embedding of every row of the source and of the target, by the target's base.
    Score: the cosine, from -1 to 1.
    Source: Vu et al., "Exploring and Predicting Transferability across NLP Tasks", 2020, arXiv 2005.00770, section 4;
    among the estimates that Poth et al., "What to Pre-Train on? Efficient Intermediate Task Selection", 2021, arXiv
    2104.08247, compare.
    Departures: the base is the recipe's own language model and not BERT, and h is of the whole row, answer included.
    Advice: cosines of a language model's states are all near 1; go by the order and by the intervals of the
    differences. It knows nothing of what is asked about the texts.
    """

    need = "embeddings"
    looks_at = "rows"

    def of_rows(self, source: Tensor, target: Tensor) -> float:
        a, b = source.double().mean(0), target.double().mean(0)
        under = float(a.norm() * b.norm())
        if under == 0:
            raise DataError("--method: the mean embedding of a data set is 0, so it has no direction")
        return float(torch.dot(a, b)) / under
