"""The gradient of a weight from what went in and what came back, without touching the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.stages import Tokens


@torch.no_grad()
def weight_gradient(x: Tensor, dy: Tensor | None, tokens: Tokens) -> Tensor:
    """dL/dW = dy^T x over the real tokens, (T, in) and (T, out) -> (out, in) in float32."""
    assert dy is not None, "the gradient of the outputs is not known in forward passes alone"
    return dy[tokens.real].float().mT @ x[tokens.real].float()
