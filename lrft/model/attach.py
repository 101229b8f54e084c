"""Putting adapters on a model, site by site, in the one fixed order: dense weight, init, quantize, attach."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from torch import nn

from lrft.core import stop
from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter, Shared
from lrft.core.block import AdaptedBlock
from lrft.core.params import Site
from lrft.core.stages import Plan, SitePlan
from lrft.model.builder import SiteBuilder, make_adapter
from lrft.model.causal_lm import CausalLM
from lrft.model.clipped import give_copies
from lrft.model.experts import group
from lrft.model.kept import change_kept
from lrft.model.score_head import take_score_head
from lrft.model.sites import is_transposed, linear_sites, matches
from lrft.model.tied_rows import tie_rows
from lrft.model.trained import trains
from lrft.ops.draws import seed_generators
from lrft.registry.config import AdapterConfig
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError


def make_plan(sites: dict[str, Site], config: AdapterConfig) -> Plan:
    """The starting plan: the adapter section's settings at every site, patterns resolved.

    Raises:
        RecipeError: a pattern of the section matches no site.
    """
    for key, patterns in config.site_patterns().items():
        for pattern in patterns:
            if not any(matches(name, pattern) for name in sites):
                near = did_you_mean(pattern, {name.rpartition(".")[2] for name in sites})
                raise RecipeError(f"pattern {pattern!r} matches no adapted layer{near}", f"adapter.{key}")
    return {name: SitePlan(site, config.for_site(name)) for name, site in sites.items()}


def check_ranks(plan: Plan, adapter: type[Adapter]) -> None:
    """Refuse a rank of factors A (rank, in) and B (out, rank) that is above what every layer which has it could use.

    A pattern such as all-linear also meets gates of one row, where the same rank is too much and does no harm. Other
    methods have ranks that mean something else: of random matrices that are shared, or of what is multiplied with the
    weight. They are asked nothing here.

    Raises:
        RecipeError: names the layer that allows the highest rank.
    """
    if "low_rank" not in adapter.provides:
        return
    sides: dict[int, dict[str, int]] = {}
    for name, entry in plan.items():
        if entry.site.is_matrix and entry.rank is not None:
            side = min(entry.site.in_features, entry.site.out_features)
            sides.setdefault(entry.rank, {})[name] = side
    for rank, layers in sides.items():
        name = max(layers, key=layers.__getitem__)
        if rank > layers[name]:
            shape = f"{plan[name].site.out_features} x {plan[name].site.in_features}"
            raise RecipeError(
                f"rank {rank} is more than any change of {name} can have, which is {shape}; use at most "
                f"{layers[name]} there ({len(layers)} of {sum(map(len, sides.values()))} layers have that rank)",
                "adapter.rank",
            )


def attach(
    model: CausalLM,
    plan: Plan,
    builder: SiteBuilder,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace every linear map that does not train, but the head, by its frozen form, and wrap the planned ones.

    An init sees the true weight, before rounding. Each site draws from its own seed, so what one site starts
    with does not depend on which others are adapted. A start that the base gives up is kept beside the adapter.
    A bias that trains stays the base model's parameter, whatever stands around it.

    Raises:
        RecipeError: the adapter cannot take the shape of a site.
    """
    names = [name for name in linear_sites(model) if not trains(model, name)]
    blocks = [name for name, entry in plan.items() if not entry.site.is_matrix]
    if builder.adapter is not None:
        seed_generators(seed)
        builder.shared = _shared_part(model, plan, builder.adapter, builder.config)
        if builder.shared is not None:
            builder.shared.to(builder.device)
    for done, name in enumerate([*names, *blocks]):
        stop.poll()
        if progress is not None:
            progress(done, len(names) + len(blocks))
        seed_generators(seed * 1_000_003 + zlib.crc32(name.encode()))
        if name in blocks:
            part = builder.part(plan[name])
            if part is not None:
                _wrap(model.hf, name, part)
            continue
        _freeze(model, name, builder, plan.get(name))
    if model.unread is not None:
        model.fingerprint, model.weight_sums = model.unread.finish(), model.unread.sums
        model.unread = None
    model.to(builder.device)
    if builder.adapter is not None:
        model.give_virtual_tokens(builder.adapter.virtual_tokens(builder.config))
        model.features = builder.features
    group(model.hf)
    give_copies(model.hf)
    change_kept(model)
    tie_rows(model.hf)
    if builder.shared is not None:
        builder.shared.bind(model)


def _freeze(model: CausalLM, name: str, builder: SiteBuilder, entry: SitePlan | None) -> None:
    """Put the frozen form of a linear layer in its place. The dense weight is gone when this returns."""
    if model.unread is not None:
        model.unread.read(name)
    layer = model.hf.get_submodule(name).to(builder.device)
    if is_transposed(layer):
        model.transposed.add(name)
    held = model.packed.get(name)
    _replace(model.hf, name, builder.layer(name, layer, entry, None if held is None else held.layer))


def attach_without_weights(
    model: CausalLM, plan: Plan, adapter: type[Adapter], config: AdapterConfig
) -> None:
    """The adapters of a plan on a model that has no weights, for counting. Call it under `torch.device("meta")`."""
    shared = _shared_part(model, plan, adapter, config)
    for name, entry in plan.items():
        if entry.config is not None:
            part = make_adapter(adapter, entry.config, entry.site, shared)
            if entry.site.is_matrix:
                _replace(model.hf, name, Adapted(model.hf.get_submodule(name), part))  # type: ignore[arg-type]
            else:
                _wrap(model.hf, name, part)


def _shared_part(
    model: CausalLM, plan: Plan, adapter: type[Adapter], config: AdapterConfig | None
) -> Shared | None:
    """What the adapters of the planned sites share, by the recipe's settings."""
    sites = {name: entry.site for name, entry in plan.items() if entry.config is not None}
    hidden = model.hf.config.get_text_config().hidden_size
    model.shared = adapter.shared(config, sites, hidden)
    return model.shared


def detach(model: CausalLM) -> None:
    """Take the adapters of `attach_without_weights` and the score head off again, and let nothing train."""
    for name, module in list(adapted(model.hf)):
        _replace(model.hf, name, module.base)
    model.shared = None
    take_score_head(model)
    model.hf.requires_grad_(False)


def _wrap(hf: nn.Module, name: str, part: Adapter) -> None:
    """Put an adapter around a whole block, whose linear layers hold their frozen forms by now."""
    block = hf.get_submodule(name)
    try:
        part.fit(block)
    except ValueError as error:
        raise RecipeError(f"{name}: {error}", "adapter") from None
    _replace(hf, name, AdaptedBlock(block, part))  # type: ignore[arg-type]


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
