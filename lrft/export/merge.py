"""Merging: what was trained as dense weights, added in float32, rounded once, never quantized again."""

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
from lrft.export.feedback import Feedback, groups, rounders
from lrft.export.rounding import rounded
from lrft.model.causal_lm import CausalLM
from lrft.model.new_tokens import take_in
from lrft.model.sites import is_transposed, linear_sites
from lrft.model.trained import base_parameters, frozen_layers
from lrft.registry.errors import NotMergeable, UsageError


@dataclass(frozen=True)
class Rounding:
    """How merged weights reach a precision below float32.

    Attributes:
        method: `stochastic`, `nearest` or `feedback`.
        moments: layers -> X^T X of their inputs by path, for `feedback`; what it leaves out is rounded stochastically.
    """

    method: str = "stochastic"
    moments: Callable[[list[Site]], dict[str, Tensor]] | None = None


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


@torch.no_grad()
def merge_into(
    dense: CausalLM, model: CausalLM, *, onto: str, dtype: torch.dtype, rounding: Rounding | None = None
) -> list[str]:
    """Give `dense`, a freshly loaded base, the merged weights of `model`, in place.

    W' = W + delta(W) with W the decoded base that training saw (`dequantized`) or the original weight
    (`original`), computed in float32 and rounded to `dtype` once. Layers that were quantized without an adapter
    get their decoded weight too under `dequantized`, so that the merged model is the trained one. What the run did
    not change is cast to nearest, which is nothing in the same dtype.

    Returns:
        Names of the tensors that were rounded stochastically.

    Raises:
        NotMergeable: the adapter is not a change of the weight.
        NumericalError: a weight is not finite, or beyond `dtype`. Either way nothing has been written.
    """
    check_mergeable(model)
    rounding = rounding or Rounding()
    weights = dict(dense.hf.named_parameters())
    changes = list(_changes(model, weights, onto))
    drawn: list[str] = []
    for group, ready in _grouped(changes, rounding if dtype != torch.float32 else Rounding()):
        for change in group:
            stop.poll()
            value, target = change.weight().cpu(), weights.pop(change.name)
            if torch.equal(value, target.float()):
                target.data = rounded(change.name, target, dtype, stochastic=False)
            elif change.layer is not None and change.layer.name in ready:
                stored = value.mT if change.transposed else value
                found = ready[change.layer.name](change.name, stored, dtype)
                target.data = found.mT.contiguous() if change.transposed else found
            else:
                target.data = rounded(change.name, value, dtype, rounding.method != "nearest")
                drawn += [change.name] if rounding.method != "nearest" and dtype != torch.float32 else []
    for name, parameter in weights.items():
        stop.poll()
        if parameter.is_floating_point():
            parameter.data = rounded(name, parameter, dtype, stochastic=False)
    if model.new_rows is not None:
        take_in(dense, model.new_rows)
    return drawn


def check_mergeable(model: CausalLM) -> None:
    """Refuse adapters that no dense weight can say.

    Raises:
        NotMergeable: names the first site.
    """
    for _, module in adapted(model.hf):
        adapter = module.adapter
        if reason := type(adapter).why_not_merged(adapter.config, adapter.site):
            raise NotMergeable(reason)


def only_rows_with(model: CausalLM, features: tuple[str, ...]) -> None:
    """Make every adapter that of the rows which have these features, and no others.

    Raises:
        UsageError: the adapters do not go by one of them.
    """
    others = [name for name in features if name not in model.features]
    if others or not features:
        known = ", ".join(model.features)
        remedy = f"goes by {known}; write some of these" if known else "goes by no feature; leave it out"
        raise UsageError(f"--features {','.join(others)}: the adapter {remedy}")
    for _, module in adapted(model.hf):
        module.adapter = module.adapter.of_features(features)
    model.features = ()


def _changes(model: CausalLM, originals: Mapping[str, Tensor], onto: str) -> Iterator[Change]:
    """What the run may have changed: adapted and decoded layers, then base weights that trained."""
    biases: set[str] = set()
    for name, base, wrapper in frozen_layers(model):
        if wrapper is None and (onto == "original" or "dense_base" in base.provides):
            continue
        site = Site(name, base.in_features, base.out_features)
        transposed = name in model.transposed
        original = originals[f"{name}.weight"]
        weight = partial(_merged, base, wrapper, original if onto == "original" else None, transposed)
        yield Change(f"{name}.weight", site, transposed, weight)
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


def _pairs(module: Adapted) -> Iterator[tuple[Tensor, Tensor]]:
    """What an adapted site was before any training, and what it is merged, in float32."""
    if isinstance(module, AdaptedBlock):
        yield from module.merged_parameters().values()
        return
    yield module.pretrained_weight(), module.merged_weight()


def _merged(base: FrozenLinear, wrapper: Adapted | None, original: Tensor | None, transposed: bool) -> Tensor:
    """The merged weight of one layer in float32, as the base model stores it."""
    if original is not None:
        original = (original.mT if transposed else original).to(base.weight().device).float()
    weight = base.weight().float() if wrapper is None else wrapper.merged_weight(original)
    return weight.mT if transposed else weight


def _grouped(changes: list[Change], rounding: Rounding) -> Iterator[tuple[list[Change], dict[str, Feedback]]]:
    """The changes in groups whose input moments fit into memory, with what rounds their layers by feedback."""
    if rounding.method != "feedback" or rounding.moments is None:
        yield changes, {}
        return
    for sites in groups([change.layer for change in changes if change.layer is not None]):
        names = {site.name for site in sites}
        ready = rounders(rounding.moments(sites))
        yield [change for change in changes if change.layer is not None and change.layer.name in names], ready
    yield [change for change in changes if change.layer is None], {}


def truncate(model: CausalLM, rank: int) -> None:
    """Keep the leading `rank` components of every adapter.

    Raises:
        UsageError: the adapter's components are not nested, or there are fewer.
    """
    for site, module in adapted(model.hf):
        adapter = module.adapter
        if "nested" not in adapter.provides:
            raise UsageError(
                f"--rank {rank}: a part of a {adapter.name} adapter is no adapter; leave the option out, or train one "
                "whose ranks are nested"
            )
        try:
            adapter.truncate(rank)
        except ValueError as error:
            raise UsageError(f"--rank {rank}: {site}: {error}") from None


def relative_change(model: CausalLM) -> float | None:
    """|delta| / |W| over all adapted sites, Frobenius norms; None where there are none."""
    change = total = 0.0
    for _, module in adapted(model.hf):
        stop.poll()
        for before, after in _pairs(module):
            change += float((after - before).square().sum())
            total += float(before.square().sum())
    return (change / total) ** 0.5 if total else None
