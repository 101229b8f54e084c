"""Whether runs that are served together were trained on one and the same base."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrft.build.text import Text
from lrft.core.adapted import Adapted
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.serve.store import Factors


@dataclass(frozen=True)
class Part:
    """A run as it is served.

    Attributes:
        model: None where another's answers.
        fingerprint: of its base.
        prints: site -> what tells the base's weight there from another (`print_of`).
    """

    name: str
    recipe: Recipe
    text: Text
    model: CausalLM | None
    fingerprint: str
    factors: Factors
    prints: dict[str, tuple[float, float]]


def check_same(first: Part, other: Part) -> None:
    """Refuse an adapter of another base than the one that answers.

    Raises:
        UsageError: says what differs.
    """
    one, two = first.recipe, other.recipe
    if first.fingerprint != other.fingerprint:
        raise UsageError(f"{other.name} was trained on another base than {first.name}; serve it by itself")
    for key in ("dtype", "rope_scaling", "context"):
        was, now = getattr(one.model, key), getattr(two.model, key)
        if was != now:
            raise UsageError(f"{other.name} has model.{key} {now} and {first.name} {was}; serve it by itself")
    shared = first.prints.keys() & other.prints.keys()
    differs = sorted(site for site in shared if not _same_print(first.prints[site], other.prints[site]))
    stored = one.quantization != two.quantization
    few_bits = "none" not in (one.quantization.method, two.quantization.method)
    if differs or stored or (few_bits and first.prints.keys() != other.prints.keys()):
        where = differs[0] if differs else "quantization"
        raise UsageError(
            f"{other.name} was trained on a base stored otherwise than that of {first.name}, at {where}"
        )


@torch.no_grad()
def print_of(module: Adapted) -> tuple[float, float]:
    """The weight before any training between two random vectors, and its norm.

    Rounding that a start leaves in it moves the product by 1e-7 of the norm, 4 bits stored otherwise by 1e-2.
    """
    W = module.pretrained_weight()
    drawn = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=drawn).to(W.device) for size in W.shape)
    return float(left @ W @ right), float(W.norm())


def _same_print(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[0] - other[0]) <= 1e-4 * one[1]
