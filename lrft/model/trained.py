"""What of a model trains, and what a checkpoint keeps of it: adapters, their shared part, and base weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.block import OfParameters
from lrft.core.changed import PARTS, Changed
from lrft.core.frozen import FrozenLinear
from lrft.core.in_layer import in_layer
from lrft.core.less import changed, start_of
from lrft.core.params import ParamInfo, Site
from lrft.core.units import WHOLE
from lrft.model.base_infos import base_infos
from lrft.model.causal_lm import CausalLM
from lrft.model.new_rows import TOKENS
from lrft.model.sites import linear_sites, matches
from lrft.model.text_part import on_text
from lrft.model.units import recover, unit_tensors
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import CheckpointError, RecipeError

BASE = "base."  # goes before the names of base weights in a checkpoint
SHARED = "shared."


def choose_base_weights(model: CausalLM, weights: str | list[str]) -> None:
    """Let the base parameters that `weights` names require gradients: none, all, or those of the patterns.

    Raises:
        RecipeError: a pattern matches no parameter.
    """
    if weights == "adapter":
        return
    everywhere = dict(model.hf.named_parameters())  # a tied head and embedding stand here once
    parameters = {name: everywhere[name] for name in on_text(model.hf, everywhere)}
    patterns = ["*"] if weights == "full" else list(weights)
    for pattern in patterns:
        hits = [name for name in parameters if matches(name, pattern)]
        if not hits:
            aside = next((name for name in everywhere if matches(name, pattern)), None)
            if aside is not None:
                message = f"pattern {pattern!r} names {aside}, which text never runs through; leave it out"
                raise RecipeError(message, "trainable.weights")
            message = f"pattern {pattern!r} matches {_why_none(model, pattern, set(parameters))}"
            raise RecipeError(message, "trainable.weights")
        for name in hits:
            parameters[name].requires_grad_(True)


def _why_none(model: CausalLM, pattern: str, names: set[str]) -> str:
    """What a pattern without a hit did name, if anything, and what to write instead."""
    everywhere = dict(model.hf.named_parameters(remove_duplicate=False))
    for name, parameter in everywhere.items():
        if matches(name, pattern):
            own = next(other for other in names if everywhere[other] is parameter)
            return f"{name}, which is tied to {own} and trains with it; name that"
    for name, _ in model.hf.named_buffers():
        if matches(name, pattern):
            return f"{name}, a constant that no gradient reaches; leave it out"
    return f"no parameter of the model{did_you_mean(pattern, {'.'.join(n.split('.')[-2:]) for n in names})}"


def trains(model: CausalLM, name: str) -> bool:
    """Whether the weight of the layer called `name` trains itself, and so stays a plain layer."""
    return model.hf.get_submodule(name).get_parameter("weight").requires_grad


def check_sites(model: CausalLM, sites: dict[str, Site]) -> None:
    """Refuse adapters on layers whose own weight trains; such a layer stays as it is.

    Raises:
        RecipeError: names the first.
    """
    for name, site in sites.items():
        if site.is_matrix and trains(model, name):
            message = f"{name}.weight would train itself, so the layer could bear no adapter"
            remedy = "leave it out of these patterns, or out of adapter.targets"
            raise RecipeError(f"{message}; {remedy}", "trainable.weights")


def check_storage(model: CausalLM, storage: str) -> None:
    """Refuse a storage of frozen weights where none is left.

    Raises:
        RecipeError: every linear layer trains.
    """
    if all(trains(model, name) for name in linear_sites(model)):
        message = f"every linear layer trains itself, so none is stored as {storage}"
        raise RecipeError(f"{message}; write quantization: none", "quantization.method")


def parameter_infos(model: CausalLM) -> list[ParamInfo]:
    """Every trainable parameter with its role: base weights, adapters site by site, what they share, new rows."""
    new = [] if model.new_rows is None else model.new_rows.infos()
    return [*base_infos(model, list(base_parameters(model))), *_adapter_infos(model), *new]


def base_parameters(model: CausalLM) -> Iterator[tuple[str, nn.Parameter]]:
    """Every base weight that trains, under the name it has in the base model, wherever it stands by now."""
    sites = [name for name, _ in adapted(model.hf)]
    inside = tuple(f"{name}.adapter." for name in sites)
    for name, parameter in model.hf.named_parameters():
        if parameter.requires_grad and not name.startswith(inside):
            yield _base_name(name, sites), parameter


def _base_name(name: str, sites: list[str]) -> str:
    """The path in the base model of what stands at `name` in one with wrappers at `sites`."""
    site = next((site for site in sites if name.startswith(f"{site}.base.")), None)
    return name if site is None else f"{site}.{name.removeprefix(f'{site}.base.')}"


@contextmanager
def put_back(model: CausalLM, pretrained: CausalLM) -> Iterator[None]:
    """Give the base weights that train the values they have in `pretrained`, the base loaded anew, for a while."""
    before, trained = dict(pretrained.hf.named_parameters()), dict(base_parameters(model))
    kept = {name: parameter.detach().clone() for name, parameter in trained.items()}
    try:
        _write(trained, before)
        yield
    finally:
        _write(trained, kept)


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _adapter_infos(model: CausalLM) -> list[ParamInfo]:
    found = []
    for site, module in adapted(model.hf):
        adapter = module.adapter
        held = dict(adapter.named_parameters())
        block = in_layer(site)
        for name, parameter in held.items():
            if parameter.requires_grad:
                found.append(
                    ParamInfo(
                        f"{site}.{name}",
                        parameter,
                        adapter.roles.get(name, "vector" if parameter.ndim == 1 else "matrix"),
                        site,
                        scaling=float(adapter.scaling),
                        partner=held.get({"A": "B", "B": "A"}.get(name, "")),
                        block=block.path if block else "",
                        sparse=bool(model.features)
                        or adapter.skipped
                        or adapter.site.kind == "expert"
                        or (isinstance(adapter, OfParameters) and adapter.vocabulary_rows() is not None),
                    )
                )
    if model.shared is not None:
        for name, parameter in model.shared.named_parameters():
            if parameter.requires_grad:
                role = model.shared.roles.get(name, "vector" if parameter.ndim == 1 else "matrix")
                found.append(ParamInfo(f"{SHARED}{name}", parameter, role, SHARED.rstrip(".")))
    return found


def trained_tensors(model: CausalLM) -> dict[str, Tensor]:
    """Everything a checkpoint keeps of the model, by name.

    `SITE.NAME` the adapter's parameters and buffers, `SITE.start.NAME` its start that the base gave up,
    `SITE.offset.A|B` what was taken off the weight before the base was stored, `SITE.change.A|B|D|b` what restarts
    added to the base, `shared.NAME` what all sites share, `base.NAME` base weights that train, `tokens.NAME`
    rows of new tokens, `units.NAME` which heads or channels of a block stay.
    """
    found = unit_tensors(model)
    for site, module in adapted(model.hf):
        parts = {"": module.adapter.state_dict()}
        less = start_of(module.base)
        if less is not None:
            parts["start."] = less.start.state_dict()
        if less is not None and less.offset is not None:
            parts["offset."] = dict(zip("AB", less.offset, strict=True))
        if isinstance(module.base, Changed):
            parts["change."] = module.base.parts()
        for prefix, tensors in parts.items():
            found.update({f"{site}.{prefix}{key}": value.detach() for key, value in tensors.items()})
    if model.shared is not None:
        found.update({f"{SHARED}{key}": value.detach() for key, value in model.shared.state_dict().items()})
    found.update({f"{BASE}{name}": parameter.detach() for name, parameter in base_parameters(model)})
    if model.new_rows is not None:
        found.update({f"{TOKENS}{key}": value for key, value in model.new_rows.state_dict().items()})
    return found


@torch.no_grad()
def load_trained_tensors(model: CausalLM, tensors: dict[str, Tensor]) -> None:
    """Set what `trained_tensors` gave, in place.

    Raises:
        CheckpointError: a tensor is missing or unknown, or has another shape.
    """
    if model.pruned is not None and model.pruned.state == WHOLE:
        tensors = recover(tensors, model.pruned, "A", "B")
    for site, module in adapted(model.hf):
        module.adapter.make_room(f"{site}.", tensors)
        change = {k: t for k in PARTS if (t := tensors.get(f"{site}.change.{k}")) is not None}
        if change:
            base = module.base = changed(module.base)
            base.set_change(**{k: t.to(model.device) for k, t in change.items()})
            module.adapter.start(base.weight())  # what it keeps of the weight it is put on
    own = trained_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[:3]
        raise CheckpointError(f"the checkpoint and the recipe do not hold the same tensors: {', '.join(odd)}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(tensor.shape)} here and {tuple(tensors[name].shape)} in the checkpoint"
            )
        tensor.copy_(tensors[name])


def frozen_layers(model: CausalLM) -> Iterator[tuple[str, FrozenLinear, Adapted | None]]:
    """Module path, frozen map and wrapper (None where no adapter sits) of every replaced linear layer.

    Layers inside an adapted block go by the path they have in the base model.
    """
    sites = [name for name, _ in adapted(model.hf)]
    for name, module in model.hf.named_modules():
        if isinstance(module, Adapted):
            if isinstance(module.base, FrozenLinear):
                yield name, module.base, module
        elif isinstance(module, FrozenLinear) and not _inside(name):
            yield _base_name(name, sites), module, None


def _inside(name: str) -> bool:
    """Whether this is the base of a wrapper, or the layer beneath a changed one."""
    return name.endswith((".base", ".base.inner", ".inner"))
