"""The diagonal of the empirical Fisher information, document by document."""

from __future__ import annotations

from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.methods.signals._weight_gradient import weight_gradient
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class Fisher(Statistic):
    """The diagonal of the empirical Fisher information, document by document.

        F = sum over documents of g * g,  g = dL/dW

    with L one document's mean loss: every micro-batch is one document. A sum, not a mean: what weighs matrices against
    each other differs from the mean by one common factor. Documents without a target are left out.

    Shapes: F, g (out, in), in float32.
    Keeps: the sum, out in numbers.
    Source: Guo et al., "LQ-LoRA", 2023, arXiv 2311.12023, and the authors' code, whose batches hold one sequence.
    Departures: none.
    """

    per_document = True

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.supervised.numel() == 0:
            return
        squared = weight_gradient(x, dy, tokens).square_()
        self.total = squared if self.total is None else self.total.add_(squared)

    def result(self) -> Tensor:
        if self.total is None:
            raise ValueError("no calibration document with a target reached it")
        return self.total
