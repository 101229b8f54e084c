"""Layers that draw what they add from normal distributions, and how far one distribution is from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted, adapted, adapters_off
from lrft.core.adapter import Adapter
from lrft.core.amortized import Amortized
from lrft.core.context import real_tokens
from lrft.core.run import LanguageModel
from lrft.registry.errors import RecipeError

NAMES = ("A", "B", "C", "D")
SHAPE, RATE = 1.0, 0.01  # of the gamma distribution of precisions


class Values(NamedTuple):
    """Mean and log-variance of what a layer adds, as factors: A, C (r, in), B, D (out, r)."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    def copied(self, trains: bool) -> Values:
        """The same numbers in tensors of their own."""
        return Values(*(tensor.detach().clone().requires_grad_(trains) for tensor in self))

    def as_leaves(self) -> Values:
        """A and B as they are, C and D as tensors that have gradients of their own."""
        return Values(self.A, self.B, self.C.detach().requires_grad_(), self.D.detach().requires_grad_())

    def of(self, x: Tensor, adapter: Adapter) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (..., out) float32 each, of inputs (..., in)."""
        assert isinstance(adapter, Amortized), "the recipe's check asks for one"
        x = x.to(adapter.compute_dtype or x.dtype)

        def term(down: Tensor, up: Tensor) -> Tensor:
            return adapter.scaling * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)).float()

        return term(self.A, self.B), adapter.log_variance + term(self.C, self.D)


@dataclass
class Told:
    """What the layers say of a forward pass.

    Attributes:
        divergences: of each, the sum over real tokens and outputs of log q - log p at what was drawn.
        priors: likewise -log p of the means and precisions of p, but for a constant.
    """

    divergences: list[Tensor] = field(default_factory=list)
    priors: list[Tensor] = field(default_factory=list)


def values_of(adapter: Adapter) -> Values:
    """Those that the adapter holds."""
    return Values(
        adapter.get_parameter("A"),
        adapter.get_parameter("B"),
        adapter.get_buffer("C"),
        adapter.get_buffer("D"),
    )


def step_nowhere(optimizer: torch.optim.Optimizer) -> None:
    """A step by gradients of 0 and without decay: there is the state of all that trains then, and nothing moved."""
    for tensor in (one for group in optimizer.param_groups for one in group["params"]):
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    optimizer.zero_grad()


def sites_of(model: LanguageModel) -> list[Adapted]:
    """Every adapted site.

    Raises:
        RecipeError: an expert is one, which sees some tokens, or none, and is computed with others.
    """
    assert isinstance(model, nn.Module), "adapters sit in a module"
    sites = [site for _, site in adapted(model)]
    if any(site.adapter.site.kind == "expert" for site in sites):
        message = "splits experts, and what layers add is drawn for tokens that all layers see; leave it out"
        raise RecipeError(message, "model.experts")
    return sites


@contextmanager
def drawn(
    model: LanguageModel, sites: Sequence[Adapted], q: Sequence[Values], p: Sequence[Values], prior: bool
) -> Iterator[Told]:
    """Let every site add what is drawn from its q, and say how far q is from its p there.

    Args:
        prior: whether what is known of p before is said too.
    """
    assert isinstance(model, nn.Module), "adapters sit in a module"
    told = Told()
    handles = [
        site.register_forward_hook(_hook(site.adapter, mine, theirs, told, prior))
        for site, mine, theirs in zip(sites, q, p, strict=True)
    ]
    try:
        with adapters_off(model):
            yield told
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    adapter: Adapter, mine: Values, theirs: Values, told: Told, prior: bool
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        real = real_tokens(x)
        mean, log_variance = mine.of(x, adapter)
        noise = torch.randn_like(mean)
        made = mean + (log_variance / 2).exp() * noise
        theirs_mean, theirs_log = theirs.of(x, adapter)
        apart = (
            (made - theirs_mean).square() * (-theirs_log).exp() + theirs_log - noise.square() - log_variance
        )
        told.divergences.append(_sum(apart, real) / 2)
        if prior:
            told.priors.append(_sum(theirs_mean.square() / 2 + gamma_loss(theirs_log), real))
        return output + made.to(output.dtype)

    return add


def gamma_loss(log_variance: Tensor) -> Tensor:
    """-log of the gamma density (shape 1, rate 0.01) of the precision exp(-log_variance), but for a constant."""
    return RATE * (-log_variance).exp() + (SHAPE - 1) * log_variance


def _sum(values: Tensor, real: Tensor | None) -> Tensor:
    return values.sum() if real is None else torch.where(real[..., None], values, 0).sum()
