"""What a run changed of its base: every such parameter, and what makes its merged value in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.adapted import Adapted, adapted
from lrft.core.block import AdaptedBlock
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import is_transposed, linear_sites
from lrft.model.trained import base_parameters, frozen_layers


@dataclass(frozen=True)
class Change:
    """A parameter of the base model that the run changed.

    Attributes:
        name: as the base model calls it.
        layer: the linear layer whose weight it is, or None.
        weight: makes its merged value in float32, as the base model stores it.
    """

    name: str
    layer: Site | None
    transposed: bool
    weight: Callable[[], Tensor]


def changes_of(model: CausalLM, originals: Mapping[str, Tensor], onto: str) -> Iterator[Change]:
    """What the run may have changed: adapted and decoded layers, then base weights that trained."""
    biases: set[str] = set()
    for name, base, wrapper in frozen_layers(model):
        if wrapper is None and (onto == "original" or "dense_base" in base.provides):
            continue
        site = Site(name, base.in_features, base.out_features)
        transposed = name in model.transposed
        path = f"{name}.weight"
        read = partial(originals.__getitem__, path) if onto == "original" else None
        yield Change(path, site, transposed, partial(_merged, base, wrapper, read, transposed))
        if wrapper is not None and (bias := wrapper.merged_bias()) is not None:
            biases.add(f"{name}.bias")
            yield Change(f"{name}.bias", None, False, partial(bias.to, torch.float32))
    yield from _of_blocks(model, originals, onto)
    plain = linear_sites(model)
    for name, parameter in base_parameters(model):
        if name in biases:  # it trains, and the adapter changes it too
            continue
        layer = plain.get(name.removesuffix(".weight"))
        transposed = layer is not None and is_transposed(model.hf.get_submodule(layer.name))
        yield Change(name, layer, transposed, partial(parameter.detach().to, torch.float32))


def _of_blocks(model: CausalLM, originals: Mapping[str, Tensor], onto: str) -> Iterator[Change]:
    """Norms and embeddings with an adapter."""
    for site, module in adapted(model.hf):
        if not isinstance(module, AdaptedBlock):
            continue
        block: nn.Module = module.base
        own = {
            name: originals[f"{site}.{name}"] if onto == "original" else p
            for name, p in block.named_parameters()
        }
        for name, (_, after) in module.merged_parameters(own).items():
            yield Change(f"{site}.{name}", None, False, partial(after.to, torch.float32))


def _merged(
    base: FrozenLinear, wrapper: Adapted | None, read: Callable[[], Tensor] | None, transposed: bool
) -> Tensor:
    """The merged weight of one layer in float32, as the base model stores it, on the weight that `read` gives."""
    original = None
    if read is not None:
        stored = read()
        original = (stored.mT if transposed else stored).to(base.weight().device).float()
    weight = base.weight().float() if wrapper is None else wrapper.merged_weight(original)
    return weight.mT if transposed else weight


def relative_change(model: CausalLM) -> float | None:
    """|delta| / |W| over all adapted sites, Frobenius norms; None where there are none."""
    change = total = 0.0
    for _, module in adapted(model.hf):
        stop.poll()
        for before, after in _pairs(module):
            change += float((after - before).square().sum())
            total += float(before.square().sum())
    return (change / total) ** 0.5 if total else None


def _pairs(module: Adapted) -> Iterator[tuple[Tensor, Tensor]]:
    """What an adapted site was before any training, and what it is merged, in float32."""
    if isinstance(module, AdaptedBlock):
        yield from module.merged_parameters().values()
        return
    yield module.pretrained_weight(), module.merged_weight()
