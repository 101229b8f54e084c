"""Putting adapters on a model, site by site, in the one fixed order: dense weight, init, quantize, attach."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter
from lrft.core.errors import RecipeError
from lrft.core.frozen import FrozenLinear, Quantizer
from lrft.core.names import did_you_mean
from lrft.core.params import ParamInfo, Site
from lrft.core.stages import Init, Plan, Signals, SitePlan
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.sites import is_transposed, linear_sites, matches


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
    adapter: type[Adapter],
    config: Any,
    init: Init,
    quantize: Quantizer,
    signals: Signals | None = None,
    starts: dict[str, dict[str, Tensor]] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace every linear map but the head by its frozen form, and wrap the planned ones with an adapter.

    An init sees the true weight, before rounding. Each site draws from its own seed, so what one site starts
    with does not depend on which others are adapted. A start that the base gives up is kept beside the adapter:
    `starts` holds those of a checkpoint, which are used instead of decomposing again, since a decomposition is not
    the same bits on another machine.

    Raises:
        RecipeError: the adapter cannot take the shape of a site.
    """
    names = list(linear_sites(model))
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        layer = model.hf.get_submodule(name)
        if is_transposed(layer):
            model.transposed.add(name)
        weight, bias = dense(layer)
        weight = weight.to(device)
        bias = None if bias is None else bias.to(device)
        if name not in plan:
            _replace(model.hf, name, quantize(weight, bias))
            continue
        settings = type(config).model_validate(plan[name].settings)
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        try:
            part = adapter(settings, plan[name].site).to(device)
        except ValueError as error:
            raise RecipeError(f"{name}: {error}", "adapter") from None
        if settings.dtype is not None:
            part.compute_dtype = DTYPES[settings.dtype]
        if starts is not None and name in starts:
            part.load_state_dict(starts[name])
        else:
            init.apply(part, weight, (signals or {}).get(name, {}), quantize)
        _replace(model.hf, name, _adapted(part, weight, bias, init, quantize))
    model.hf.to(device)


def _adapted(part: Adapter, weight: Tensor, bias: Tensor | None, init: Init, quantize: Quantizer) -> Adapted:
    """The wrapper of one site; with a residual init the base gives up the adapter's start, or is anchored."""
    if not init.residual:
        base = quantize(weight, bias)
        part.start(base.weight())
        return Adapted(base, part)
    start, base, wanted = copy.deepcopy(part), quantize(weight, bias), init.config.residual
    if wanted == "anchor" or (wanted is None and "dense_base" not in base.provides):
        return Adapted(base, part, start, anchored=True)
    with torch.no_grad():
        residual = weight.float() - start.delta_weight(weight.float())
    return Adapted(quantize(residual.to(weight.dtype), bias), part, start)


def dense(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The dense (out, in) weight and the bias of a linear layer as transformers loaded it."""
    weight = layer.get_parameter("weight").detach()
    bias = None if layer.bias is None else layer.get_parameter("bias").detach()
    return (weight.mT.contiguous() if is_transposed(layer) else weight), bias


def parameter_infos(model: CausalLM) -> list[ParamInfo]:
    """Every trainable parameter with the role its adapter gives it."""
    found = []
    for site, module in adapted(model.hf):
        for name, parameter in module.adapter.named_parameters():
            if parameter.requires_grad:
                role = module.adapter.roles.get(name, "vector" if parameter.ndim == 1 else "matrix")
                found.append(ParamInfo(f"{site}.{name}", parameter, role, site))
    return found


def adapter_tensors(model: CausalLM) -> dict[str, Tensor]:
    """Site name + parameter name -> tensor, float32 masters, frozen parameters and saved buffers included."""
    found = {}
    for site, module in adapted(model.hf):
        parts = {"": module.adapter} if module.start is None else {"": module.adapter, "start.": module.start}
        for prefix, part in parts.items():
            found.update(
                {f"{site}.{prefix}{key}": value.detach() for key, value in part.state_dict().items()}
            )
    return found


def starts_in(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Site -> the adapter's tensors at step 0, for the sites of a checkpoint whose base gave them up."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, marker, key = name.rpartition(".start.")
        if marker:
            found.setdefault(site, {})[key] = tensor
    return found


@torch.no_grad()
def load_adapter_tensors(model: CausalLM, tensors: dict[str, Tensor]) -> None:
    """Set the adapters' tensors, in place.

    Raises:
        KeyError: a tensor is missing or unknown, or has another shape.
    """
    own = adapter_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[:3]
        raise KeyError(
            f"the checkpoint and the recipe do not hold the same adapter tensors: {', '.join(odd)}"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise KeyError(
                f"{name} is {tuple(tensor.shape)} here and {tuple(tensors[name].shape)} in the checkpoint"
            )
        tensor.copy_(tensors[name])


def frozen_layers(model: CausalLM) -> Iterator[tuple[str, FrozenLinear, Adapted | None]]:
    """Module path, frozen map and wrapper (None where no adapter sits) of every replaced linear layer."""
    for name, module in model.hf.named_modules():
        if isinstance(module, Adapted):
            yield name, module.base, module
        elif isinstance(module, FrozenLinear) and not name.endswith(".base"):
            yield name, module, None


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
