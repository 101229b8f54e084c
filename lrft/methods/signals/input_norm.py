"""How large each input of a layer is."""

from __future__ import annotations

from lrft.methods.signals._norms import Norms
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class InputNorm(Norms):
    """How large each input of a layer is: its L2 norm over all real tokens.

        n_j = sqrt(sum over tokens of x_j^2)

    Shapes: x (tokens, in), n (in) in float32.
    Keeps: the sums of squares, in numbers. Forward passes alone; sites that share an input share it.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv
    2306.11695 (Wanda).
    Departures: none; the authors' code takes the mean of the squares over the samples, which orders alike.
    """

    backward = False
    of_input = True
    what = "inputs"
