"""A pretrained model that trains in full while it is measured, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lrft.core.stages import WarmUp


@contextmanager
def moving(model: nn.Module, warm_up: WarmUp | None) -> Iterator[Callable[[], None]]:
    """What takes a step with the gradients that there are; without a warm-up it does nothing.

    Steps are taken on float32 copies, so that those much smaller than a weight add up in half precision too. At the end
    every weight is the very tensor that it was.
    """
    if warm_up is None:
        yield lambda: None
        return
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    before = [(weight.data, weight.requires_grad) for weight in weights]
    masters = [weight.detach().to(torch.float32, copy=True) for weight in weights]
    move = warm_up(masters)

    @torch.no_grad()
    def step() -> None:
        for weight, master in zip(weights, masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        move()
        for weight, master in zip(weights, masters, strict=True):
            weight.copy_(master)

    try:
        for weight in weights:
            weight.data = weight.data.clone()
            weight.requires_grad_(True)
        yield step
    finally:
        for weight, (tensor, trained) in zip(weights, before, strict=True):
            weight.data, weight.grad = tensor, None
            weight.requires_grad_(trained)
