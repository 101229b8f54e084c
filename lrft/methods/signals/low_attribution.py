"""How often each output of a layer is among those that do least for the model's own answers."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class LowAttribution(Statistic):
    """How often each output of a layer is among those that do least for the model's own answers to prompts.

        a_j = y_j * integral over t from 0 to 1 of dF/dy_j at t y
        s_j = (a_j - min a) / (max a - min a)
        c_j = number of prompts in which s_j is among the k lowest,  k = floor(out p / 100)

    with y the layer's outputs at the last token of the prompt, which alone are scaled; F the logit of the token, or
    label, that the model finds most likely then; p = `percent`. The integral is the trapezoidal rule over 7 points. The
    lowest are those of the least signed score: what speaks most against the answer, not what is smallest.

    Shapes: y, a, s, c (out), c in float32.
    Keeps: the counts, out numbers. One forward pass a prompt, and one forward and backward pass of 7 rows for each
    site.
    Source: Wang et al., "LoKI: Low-damage Knowledge Implanting of Large Language Models", AAAI 2026, arXiv 2505.22120,
    and the authors' code (Nexround/LoKI).
    Departures: settled here: F is the logit, as in the paper (the code takes the probability); the factor y_j is that
    of integrated gradients and of the code (equation 4 of the paper leaves it out); the last token alone is scaled,
    from 0, as in the authors' first code (the later one scales all tokens, from the activations of a text of zeros).
    Normalising changes no order within a prompt, and is left out.
    """

    per_document = True
    of_output = True
    path = 7

    def __init__(self, *, percent: float = 10.0) -> None:
        self.percent = percent
        self.counts: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.supervised.numel() == 0:
            return
        assert dy is not None, "attributions need gradients"
        scores = x[tokens.real].float() * dy[tokens.real].float()
        if not scores.isfinite().all():
            raise ValueError("its outputs have no finite attribution on the calibration rows")
        lowest = scores.sort(dim=-1, stable=True).indices[:, : row_count(scores.shape[-1], self.percent)]
        counts = torch.bincount(lowest.flatten(), minlength=scores.shape[-1]).float()
        self.counts = counts if self.counts is None else self.counts.add_(counts)

    def result(self) -> Tensor:
        if self.counts is None:
            raise ValueError("no calibration document with a target reached it")
        return self.counts


def row_count(out: int, percent: float) -> int:
    """Floor of so many per cent of the outputs."""
    return int(out * percent / 100)
