"""The sites of a model whose change is a product of two trained factors and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import LowRank
from lrft.model.causal_lm import CausalLM
from lrft.model.trained import base_parameters
from lrft.registry.errors import UsageError

LAYERS = ("all", "last")
BLOCK = re.compile(r".*?\.\d+(?=\.)")


@dataclass(frozen=True)
class Pair:
    """y = x W^T + scale (x A^T) B^T at one site; A (r, in) and B (out, r) are all that trained there."""

    name: str
    module: Adapted
    A: Tensor
    B: Tensor
    scale: float


def trained_pairs(model: CausalLM, layers: str = "all") -> list[Pair]:
    """The sites in the model's order, all of them or those of the last decoder layer that has any.

    Raises:
        UsageError: something else trained too, so that a statement about these factors would leave it out.
    """
    if any(base_parameters(model)) or model.new_rows is not None:
        raise UsageError(
            "weights of the base model trained too (trainable), and they have no low-rank factors"
        )
    sites = [(name, site) for name, site in adapted(model.hf)]
    if not sites:
        raise UsageError("nothing is adapted here, so there are no low-rank factors")
    pairs = [_pair(name, site) for name, site in sites]
    if layers == "all":
        return pairs
    last = _layer(pairs[-1].name)
    return [pair for pair in pairs if _layer(pair.name) == last]


def parameters_of(pairs: Sequence[Pair]) -> list[Tensor]:
    """A and B of every site."""
    return [factor for pair in pairs for factor in (pair.A, pair.B)]


def _pair(name: str, site: Adapted) -> Pair:
    adapter = site.adapter
    what = f"{adapter.name} at {name}"
    if not isinstance(adapter, LowRank) or adapter.site.kind != "linear" or site.bias is not None:
        raise UsageError(f"{what} is not one product of two trained factors A and B beside a linear layer")
    if site.base.change() is not None:
        raise UsageError(f"{what}: what restarts moved into the base is no part of its factors any more")
    branch = adapter.branch()
    held = dict(adapter.named_parameters())
    own = held.keys() == {"A", "B"} and branch.down is held["A"] and branch.up is held["B"]
    if not own or branch.gain is not None or branch.formed is not None:
        trained = ", ".join(held) or "nothing of its own"
        raise UsageError(
            f"{what} is more than one product of two trained factors A and B (it holds {trained})"
        )
    if "trained_pair" not in adapter.provides:
        raise UsageError(f"{what} trains one of its factors alone, and the prior is over both")
    return Pair(name, site, held["A"], held["B"], branch.scale)


def _layer(name: str) -> str:
    found = BLOCK.match(name)
    return name if found is None else found[0]
