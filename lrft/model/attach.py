"""Putting adapters on a model, site by site, in the one fixed order: dense weight, init, quantize, attach."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter
from lrft.core.frozen import Absent, FrozenLinear, Quantizer
from lrft.core.params import Site
from lrft.core.stages import Init, Plan, Signals, SitePlan
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.sites import is_transposed, linear_sites, matches
from lrft.model.trained import trains
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError


def make_plan(sites: dict[str, Site], config: Any) -> Plan:
    """The starting plan: the adapter section's settings at every site, patterns resolved.

    Raises:
        RecipeError: a pattern of the section matches no site.
    """
    for key, patterns in config.site_patterns().items():
        for pattern in patterns:
            if not any(matches(name, pattern) for name in sites):
                near = did_you_mean(pattern, {name.rpartition(".")[2] for name in sites})
                raise RecipeError(f"pattern {pattern!r} matches no adapted layer{near}", f"adapter.{key}")
    return {name: SitePlan(site, config.for_site(name).model_dump()) for name, site in sites.items()}


def attach(
    model: CausalLM,
    plan: Plan,
    *,
    quantize: Quantizer,
    adapter: type[Adapter] | None = None,
    config: Any = None,
    init: Init | None = None,
    signals: Signals | None = None,
    saved: dict[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace every linear map that does not train, but the head, by its frozen form, and wrap the planned ones.

    An init sees the true weight, before rounding. Each site draws from its own seed, so what one site starts
    with does not depend on which others are adapted. A start that the base gives up is kept beside the adapter.
    A bias that trains stays the base model's parameter, whatever stands around it.

    Args:
        saved: adapter tensors of a checkpoint. Nothing is initialised then: its starts are used instead of
            decomposing again, since a decomposition is not the same bits on another machine.

    Raises:
        RecipeError: the adapter cannot take the shape of a site.
    """
    names = [name for name in linear_sites(model) if not trains(model, name)]
    blocks = [name for name, entry in plan.items() if entry.site.kind != "linear"]
    shared = None
    if adapter is not None:
        torch.manual_seed(seed)
        sites = {name: entry.site for name, entry in plan.items() if entry.settings is not None}
        shared = adapter.shared(config, sites, model.hf.config.get_text_config().hidden_size)
        model.shared = None if shared is None else shared.to(device)
    for done, name in enumerate([*names, *blocks]):
        if progress is not None:
            progress(done, len(names) + len(blocks))
        entry = plan.get(name)
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        part = None
        if entry is not None and entry.settings is not None:
            assert adapter is not None and init is not None
            part = _make(adapter, type(config).model_validate(entry.settings), entry.site, shared).to(device)
        if name in blocks:
            if part is not None:
                _wrap_block(model.hf, name, part)
            continue
        layer = model.hf.get_submodule(name).to(device)
        if is_transposed(layer):
            model.transposed.add(name)
        store, signal = _storing(quantize, entry), (signals or {}).get(name, {})
        _replace(model.hf, name, _frozen(layer, part, init, store, signal, _parts_of(name, saved)))
    model.hf.to(device)
    if shared is not None:
        shared.bind(model)


def attach_without_weights(model: CausalLM, plan: Plan, adapter: type[Adapter], config: Any) -> None:
    """The adapters of a plan on a model that has no weights, for counting. Call it under `torch.device("meta")`."""
    sites = {name: entry.site for name, entry in plan.items() if entry.settings is not None}
    shared = adapter.shared(config, sites, model.hf.config.get_text_config().hidden_size)
    model.shared = shared
    for name, site in sites.items():
        part = _make(adapter, type(config).model_validate(plan[name].settings), site, shared)
        if site.kind == "linear":
            _replace(model.hf, name, Adapted(model.hf.get_submodule(name), part))  # type: ignore[arg-type]
        else:
            _wrap_block(model.hf, name, part)


def detach(model: CausalLM) -> None:
    """Take the adapters of `attach_without_weights` off again, and let nothing train."""
    for name, module in list(adapted(model.hf)):
        _replace(model.hf, name, module.base)
    model.shared = None
    model.hf.requires_grad_(False)


def _make(adapter: type[Adapter], settings: Any, site: Site, shared: nn.Module | None) -> Adapter:
    try:
        part = adapter.at(settings, site, shared)
    except ValueError as error:
        raise RecipeError(f"{site.name}: {error}", "adapter") from None
    if settings.dtype is not None:
        part.compute_dtype = DTYPES[settings.dtype]
    return part


def _storing(quantize: Quantizer, entry: SitePlan | None) -> Quantizer:
    """The recipe's storage with the settings that a planner chose for this site."""
    chosen = {} if entry is None else entry.quantization

    def store(weight: Tensor, bias: Tensor | None = None, **settings: Any) -> Any:
        return quantize(weight, bias, **{**chosen, **settings})

    return store


def _frozen(
    layer: nn.Module,
    part: Adapter | None,
    init: Init | None,
    store: Quantizer,
    signal: dict[str, Tensor],
    saved: dict[str, dict[str, Tensor]] | None,
) -> FrozenLinear | Adapted:
    """The frozen form of a linear layer, with its adapter if it gets one, and with its own bias if that trains."""
    weight, bias = dense(layer)
    trained = layer.bias if isinstance(layer.bias, nn.Parameter) and layer.bias.requires_grad else None
    kept = bias if trained is None else None
    made = store(weight, kept) if part is None else _adapted(part, weight, kept, init, store, signal, saved)
    if trained is not None:
        made.train_bias(trained)
    return made


def _adapted(
    part: Adapter,
    weight: Tensor,
    bias: Tensor | None,
    init: Init | None,
    quantize: Quantizer,
    signal: dict[str, Tensor] | None = None,
    saved: dict[str, dict[str, Tensor]] | None = None,
) -> Adapted:
    """The wrapper of one site; with a residual init the base gives up the adapter's start, or is anchored.

    Args:
        saved: the parts of a checkpoint at this site (`start`, `offset`); None to initialise.
    """
    assert init is not None
    if "own_weights" in part.provides:
        part.start(weight)
        return Adapted(Absent(weight, bias), part)
    if saved is None:
        try:
            offset = init.apply(part, weight, signal or {}, quantize)
        except ValueError as error:
            raise RecipeError(f"{part.site.name}: {error}", "init") from None
        start = copy.deepcopy(part) if init.residual else None
    else:
        offset = (saved["offset"]["A"], saved["offset"]["B"]) if "offset" in saved else None
        start = copy.deepcopy(part) if "start" in saved else None
        if start is not None:
            start.load_state_dict(saved["start"])
    if start is None:
        base = quantize(weight, bias)
        part.start(base.weight())
        return Adapted(base, part)
    if offset is not None:
        offset = (offset[0].to(weight.device), offset[1].to(weight.device))
        residual = weight.float() - offset[1] @ offset[0]
        return Adapted(quantize(residual.to(weight.dtype), bias), part, start, offset=offset)
    wanted = getattr(init.config, "residual", "rewrite")
    base = quantize(weight, bias)
    if wanted == "anchor" or (wanted is None and "dense_base" not in base.provides):
        return Adapted(base, part, start, anchored=True)
    with torch.no_grad():
        residual = weight.float() - start.delta_weight(weight.float())
    return Adapted(quantize(residual.to(weight.dtype), bias), part, start)


def _wrap_block(hf: nn.Module, name: str, part: Adapter) -> None:
    """Put an adapter around a whole block, whose linear layers hold their frozen forms by now."""
    block = hf.get_submodule(name)
    try:
        part.fit(block)
    except ValueError as error:
        raise RecipeError(f"{name}: {error}", "adapter") from None
    _replace(hf, name, Adapted(block, part))  # type: ignore[arg-type]


def _parts_of(name: str, saved: dict[str, Tensor] | None) -> dict[str, dict[str, Tensor]] | None:
    """The `start` and `offset` tensors of one site in a checkpoint; None without a checkpoint."""
    if saved is None:
        return None
    found: dict[str, dict[str, Tensor]] = {}
    for part in ("start", "offset"):
        prefix = f"{name}.{part}."
        tensors = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        if tensors:
            found[part] = tensors
    return found


def dense(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The dense (out, in) weight and the bias of a linear layer as transformers loaded it."""
    weight = layer.get_parameter("weight").detach()
    bias = None if layer.bias is None else layer.get_parameter("bias").detach()
    return (weight.mT.contiguous() if is_transposed(layer) else weight), bias


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
