"""Units of a model's blocks: found by the names and shapes of their layers, hidden, cut off, and recovered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.in_layer import in_layer
from lrft.core.params import Site
from lrft.core.units import CUT, HIDDEN, WHOLE, Pruned, Units, recovered, spread
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import HF
from lrft.model.sites import linear_sites
from lrft.registry.errors import RecipeError

Hook = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]
UNITS = "units."  # goes before their names in a checkpoint
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def find_units(model: CausalLM) -> list[Units]:
    """Heads and channels of every decoder layer, in model order.

    Raises:
        RecipeError: a layer of the model holds them in another way.
    """
    blocks: dict[str, dict[str, Site]] = {}
    for path, site in linear_sites(model).items():
        name, _, leaf = path.rpartition(".")
        if _stands_in_a_layer(name):
            blocks.setdefault(name, {})[leaf] = site
    config: Any = model.hf.config.get_text_config()
    found: list[Units] = []
    for name, layers in blocks.items():
        own = [
            torch.Size()
            if in_layer(path)
            else parameter.shape  # of numbered parts, such as one head's own norm
            for path, parameter in model.hf.get_submodule(name).named_parameters()
            if path.partition(".")[0] not in layers
        ]
        code = getattr(type(model.hf.get_submodule(name)).forward, "__code__", None)
        counts_heads = "num_heads" in getattr(
            code, "co_names", ()
        )  # others take what they are given as heads
        one = _heads(name, layers, own, config, counts_heads) or _channels(name, layers, own, config)
        found += [] if one is None else [one]
    wanted = [(kind, depth) for depth in range(config.num_hidden_layers) for kind in ("channels", "heads")]
    if sorted((one.kind, one.depth) for one in found) != sorted(wanted):
        raise RecipeError(
            f"not every layer of {type(model.hf).__name__} is one attention of {', '.join(ATTENTION)} and one "
            f"feed-forward block of {', '.join(FEED_FORWARD)}, whose heads and channels can be told apart; write "
            "prune: null, or name another model",
            "prune",
        )
    return found


def _stands_in_a_layer(name: str) -> bool:
    """Whether a block is a decoder layer's own, and no part of a larger one that holds experts beside it."""
    found = in_layer(name)
    return found is not None and found.rest != "" and "." not in found.rest


def _depth(name: str) -> int:
    found = in_layer(name)
    assert found is not None, "blocks outside of the layers are left out"
    return found.number


def _heads(
    name: str, layers: Mapping[str, Site], beside: list[torch.Size], config: Any, counts_heads: bool
) -> Units | None:
    """Heads by the keys they share; a norm over all, a number for each, or code that counts them is in the way."""
    if layers.keys() != set(ATTENTION):
        return None
    heads = int(config.num_attention_heads)
    pairs = int(getattr(config, "num_key_value_heads", None) or heads)
    width = layers["k_proj"].out_features // pairs
    outs = [layers[leaf].out_features for leaf in ATTENTION[:3]]
    if [*outs, layers["o_proj"].in_features] != [heads * width, pairs * width, pairs * width, heads * width]:
        return None
    if any(shape != (width,) for shape in beside) or counts_heads:
        return None
    share = heads // pairs * width
    rows = {f"{name}.q_proj": share, f"{name}.k_proj": width, f"{name}.v_proj": width}
    return Units(name, "heads", _depth(name), pairs, rows, {f"{name}.o_proj": share})


def _channels(name: str, layers: Mapping[str, Site], beside: list[torch.Size], config: Any) -> Units | None:
    if beside or layers.keys() not in (set(FEED_FORWARD), set(FEED_FORWARD[1:])):
        return None
    into = [leaf for leaf in FEED_FORWARD[:2] if leaf in layers]
    inner = layers["down_proj"].in_features
    if inner != config.intermediate_size or any(layers[leaf].out_features != inner for leaf in into):
        return None
    rows = {f"{name}.{leaf}": 1 for leaf in into}
    return Units(name, "channels", _depth(name), inner, rows, {f"{name}.down_proj": 1})


def hide(model: CausalLM, pruned: Pruned) -> None:
    """Compute as if the units that do not stay were gone, also those that `pruned` will say later.

    What a block makes of its units goes through the layers that lose columns and through nothing else, so zeros in
    their inputs give the outputs and the gradients of the smaller model.
    """
    assert pruned.state == HIDDEN
    switch = next((module for _, module in adapted(model.hf)), None)  # off, there is the whole base model
    for units in pruned.units.values():
        pruned.stays[units.name] = pruned.stays[units.name].to(model.device)
        for layer, width in units.columns.items():
            model.hf.get_submodule(layer).register_forward_pre_hook(_hider(pruned, units.name, width, switch))


def _hider(pruned: Pruned, name: str, width: int, switch: Adapted | None) -> Hook:
    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if switch is not None and not switch.enabled:
            return None
        return (inputs[0] * spread(pruned.stays[name].to(inputs[0].dtype), width), *inputs[1:])

    return zero


@torch.no_grad()
def cut(hf: HF, pruned: Pruned) -> None:
    """Cut the units that do not stay off the layers of a plain model, and let its configuration say so.

    Raises:
        RecipeError: a layer holds no dense weight of its own.
    """
    for units in pruned.units.values():
        stays = pruned.stays[units.name].bool()
        if bool(stays.all()):
            continue
        for layer, width in units.rows.items():
            _keep(hf.get_submodule(layer), spread(stays, width), 0)
        for layer, width in units.columns.items():
            _keep(hf.get_submodule(layer), spread(stays, width), 1)
    say_sizes(hf, pruned)


def _keep(layer: nn.Module, places: Tensor, dim: int) -> None:
    """Keep rows (0) or columns (1) of a linear layer's weight, seen as (out, in)."""
    assert isinstance(layer, nn.Linear), "found by names that layers stored as (in, out) do not have"
    index = places.nonzero().flatten().to(layer.weight.device)
    for name, held in (("weight", layer.weight), ("bias", layer.bias)):
        if held is not None and (name == "weight" or dim == 0):
            kept = nn.Parameter(held.data.index_select(dim, index), held.requires_grad)
            layer.register_parameter(name, kept)
    layer.out_features, layer.in_features = layer.weight.shape


def sized_by_config(hf: HF, pruned: Pruned) -> bool:
    """Whether transformers gives the layers that lost units their sizes by what `say_sizes` says; some fix a width."""
    config = copy.deepcopy(hf.config)
    _say_sizes(config, pruned)
    with torch.device("meta"):
        made = type(hf)(config)
    wanted = [
        (layer, dim, int(pruned.stays[units.name].sum()) * width)
        for units in pruned.units.values()
        for dim, layers in enumerate((units.rows, units.columns))
        for layer, width in layers.items()
    ]
    return all(made.get_parameter(f"{layer}.weight").shape[dim] == size for layer, dim, size in wanted)


def say_sizes(hf: HF, pruned: Pruned) -> None:
    """Write into a model's configuration how many heads and channels there are, where all layers have as many."""
    _say_sizes(hf.config, pruned)


def _say_sizes(whole: Any, pruned: Pruned) -> None:
    config = whole.get_text_config()
    heads, pairs = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    counts = {kind: _counts(pruned, kind) for kind in ("heads", "channels")}
    config.head_dim = width
    if len(counts["heads"]) == 1:
        (kept,) = counts["heads"]
        config.num_attention_heads = kept * (heads // (pairs or heads))
        if pairs is not None:
            config.num_key_value_heads = kept
    if len(counts["channels"]) == 1:
        (config.intermediate_size,) = counts["channels"]


def _counts(pruned: Pruned, kind: str) -> set[int]:
    return {int(pruned.stays[name].sum()) for name, units in pruned.units.items() if units.kind == kind}


def even(pruned: Pruned) -> bool:
    """Whether every layer keeps as many heads and as many channels as the others."""
    return all(len(_counts(pruned, kind)) == 1 for kind in ("heads", "channels"))


def unit_tensors(model: CausalLM) -> dict[str, Tensor]:
    """What a checkpoint keeps of the units; nothing where all are there."""
    pruned = model.pruned
    if pruned is None or pruned.state == WHOLE:
        return {}
    return {f"{UNITS}{name}": stays for name, stays in pruned.stays.items()}


def saved_stays(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, what `unit_tensors` gave."""
    return {key.removeprefix(UNITS): value for key, value in tensors.items() if key.startswith(UNITS)}


def hides_units(model: CausalLM) -> bool:
    """Whether what trained is of the model without some of its units, which an adapter alone cannot say."""
    return model.pruned is not None and model.pruned.state == HIDDEN


def of_whole(model: CausalLM, tensors: dict[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """An adapter's tensors on the whole model, where it trains on one without some units.

    Args:
        names: what `A` and `B` are called after their site and a dot.
    """
    if model.pruned is None or model.pruned.state != CUT:
        return tensors
    return recover(tensors, model.pruned, names["A"], names["B"])


def recover(tensors: Mapping[str, Tensor], pruned: Pruned, A: str, B: str) -> dict[str, Tensor]:
    """An adapter that was trained without some units as one of the whole model, zeros where they were.

    Args:
        tensors: by names `PREFIXSITE.A` and `PREFIXSITE.B`; those of the units themselves are left out.
        pruned: which of them stayed.
        A, B: what the factors are called after their site and a dot.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNITS)}
    for units in pruned.units.values():
        stays = pruned.stays[units.name]
        for layers, leaf, dim in ((units.rows, B, 0), (units.columns, A, 1)):
            for name in [name for name in found if name.endswith(tuple(f"{one}.{leaf}" for one in layers))]:
                found[name] = recovered(found[name], stays, dim)
    return found
