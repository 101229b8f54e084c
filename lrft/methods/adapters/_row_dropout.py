"""Dropout of whole outputs of a change, and of all of it, as the methods of LyCORIS have it."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter


def draw_rows(
    adapter: Adapter, probability: float, device: torch.device, rescaled: bool = True, whole: float = 0.0
) -> Tensor | None:
    """What the rows of the change at a site are multiplied with, (out,); None where none is dropped.

    A row is 0 with `probability`; with `rescaled` the others are divided by the share of rows that is left, in this
    very draw. A draw that leaves none is all 0, and so are all rows with the probability `whole`.
    """
    if not adapter.training or probability == whole == 0:
        return None
    rows = torch.ones(adapter.site.out_features, device=device)
    if probability:
        rows = (torch.rand(len(rows), device=device) > probability).float()
        rows = rows / rows.mean().clamp_min(1 / len(rows)) if rescaled else rows
    return rows if whole == 0 else rows * (torch.rand((), device=device) > whole)
