"""How far each input of a layer reaches."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Statistic, Tokens
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class InputMax(Statistic):
    """How far each input of a layer reaches: its largest magnitude over all real tokens.

        a_j = max over tokens of |x_j|

    Shapes: x (tokens, in), a (in) in float32.
    Keeps: the maxima, in numbers. Forward passes alone; sites that share an input share it.
    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    ICML 2023, arXiv 2211.10438.
    Departures: none.
    """

    backward = False
    of_input = True

    def __init__(self) -> None:
        self.largest: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        if tokens.real.numel() == 0:
            return
        largest = x[tokens.real].float().abs().amax(0)
        if not largest.isfinite().all():
            raise ValueError("its inputs are not finite on the calibration rows")
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def result(self) -> Tensor:
        if self.largest is None:
            raise ValueError("no calibration batch reached it")
        return self.largest
