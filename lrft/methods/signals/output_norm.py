"""How large each output of a layer is."""

from __future__ import annotations

from lrft.methods.signals._norms import Norms
from lrft.registry.axes import SIGNALS


@SIGNALS.register
class OutputNorm(Norms):
    """How large each output of a layer is: its L2 norm over all real tokens.

        n_j = sqrt(sum over tokens of y_j^2)

    with y the layer's outputs, bias included.

    Shapes: y (tokens, out), n (out) in float32.
    Keeps: the sums of squares, out numbers. Forward passes alone.
    Source: Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV 2023,
    arXiv 2309.08513, and the authors' code, whose norms are those of each class and are averaged over the classes.
    Departures: texts have no classes, so there is one.
    """

    backward = False
    of_output = True
    what = "outputs"
