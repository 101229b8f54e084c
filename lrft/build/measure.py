"""What a recipe costs, counted from the modules and the optimizer that training would build, without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from lrft.build.adaptation import Adaptation
from lrft.build.decide import quantizer
from lrft.build.measured import MatrixShares, Measured
from lrft.build.optimizing import build_optimizer
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapted
from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.model.attach import attach_without_weights, detach
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES, load_model
from lrft.model.score_head import is_score_head
from lrft.model.sites import linear_sites, site_size
from lrft.model.trained import parameter_infos
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS
from lrft.training import updates


def measure(recipe: Recipe, model: CausalLM | None = None, optimizer: bool = True) -> Measured:
    """Counts and bytes of a recipe as plain numbers.

    Args:
        model: its base model without weights, to be used for several recipes; given back as it was.
        optimizer: count the optimizer's state too, which steps the optimizer once.

    Returns:
        `base`, `linear` and `other` (its parameters in linear layers of the body, and the rest), `trainable`,
        `trainable_percent` (of base + trainable), `percent_of_base`, `weight_bytes`, `trainable_bytes`,
        `gradient_bytes`, `optimizer_bytes`.

    Raises:
        RecipeError: the model cannot be built, or a pattern matches nothing.
    """
    if model is None:
        model = load_model(recipe.model, meta=True)
    with planned(recipe, model) as found:
        state = optimizer_bytes(recipe, found.infos) if optimizer else 0
        return counted(recipe, found, bytes_per_weight(recipe), state)


class Planned(NamedTuple):
    """A model without weights that has its adapters.

    Attributes:
        infos: what trains.
        base, linear: parameters of the base model, and those of them in linear layers of the body.
    """

    adaptation: Adaptation
    infos: list[ParamInfo]
    base: int
    linear: int


@contextmanager
def planned(recipe: Recipe, model: CausalLM) -> Iterator[Planned]:
    """The recipe's adapters on its base model without weights, which is given back as it was.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    base = sum(parameter.numel() for parameter in model.hf.parameters())
    linear = sum(site.in_features * site.out_features for site in linear_sites(model).values())
    adaptation = plan_without_weights(recipe, model)
    try:
        yield Planned(adaptation, planned_parameters(recipe, adaptation), base, linear)
    finally:
        detach(model)


def counted(recipe: Recipe, found: Planned, stored: float, state: int) -> Measured:
    """What `measure` gives.

    Args:
        stored: bytes that a weight takes in the recipe's storage.
        state: bytes of the optimizer's state.
    """
    adaptation, infos, base, linear = found
    trainable = sum(info.param.numel() for info in infos)
    added = sum(info.param.numel() for info in infos if _is_added(info))
    gradients = [info.param.numel() * info.param.element_size() for info in infos]
    item = DTYPES[recipe.model.dtype].itemsize
    held = linear - sum(
        module.adapter.site.in_features * module.adapter.site.out_features
        for _, module in adapted(adaptation.model.hf)
        if "own_weights" in module.adapter.provides
    )
    linear_bytes = round(held * (item if recipe.trainable.weights == "full" else stored))
    return {
        "base": base,
        "linear": linear,
        "other": base - linear,
        "trainable": trainable,
        "trainable_percent": 100 * trainable / (base + added),
        "percent_of_base": 100 * trainable / base,
        "weight_bytes": linear_bytes + (base - linear) * item,
        "linear_bytes": linear_bytes,
        "trainable_bytes": sum(i.param.numel() * i.param.element_size() for i in infos if _is_added(i)),
        "gradient_bytes": max(gradients) if recipe.optimizer.per_layer else sum(gradients),
        "optimizer_bytes": state,
        "targets": [
            {"pattern": r.pattern, "modules": r.modules, "share": r.share} for r in adaptation.targets
        ],
        "matrices": matrix_shares(adaptation, recipe),
        "ranks_undecided": adaptation.undecided,
    }


def _is_added(info: ParamInfo) -> bool:
    """Whether the base model has no such parameter."""
    return bool(info.site) or is_score_head(info.name)


def matrix_shares(adaptation: Adaptation, recipe: Recipe) -> MatrixShares:
    """Of all numbers in matrices, the share adapted, the share stored in few bits, and the share out of reach of both.

    `sentence` says what is out of reach.
    """
    held = adaptation.matrices
    adapted_sizes = [site_size(entry.site) for entry in adaptation.plan.values() if entry.config is not None]
    few_bits = "dense_base" not in QUANTIZERS.declared(recipe.quantization.method).provides
    return {
        "numbers": held.total,
        "adapted": sum(adapted_sizes) / max(held.total, 1),
        "quantized": (1 - held.unreached) if few_bits else 0.0,
        "unreached": held.unreached,
        "sentence": held.sentence(),
    }


def planned_parameters(recipe: Recipe, adaptation: Adaptation) -> list[ParamInfo]:
    """The trainable parameters, from adapters built without storage, put where training puts them."""
    model = adaptation.model
    if recipe.adapter is not None:
        with torch.device("meta"):
            adapter = ADAPTERS.get(recipe.adapter.method)
            attach_without_weights(model, adaptation.plan, adapter, recipe.adapter)
        assert next(adapted(model.hf), None) is not None, "a plan without a site"
    return parameter_infos(model)


def bytes_per_weight(recipe: Recipe) -> float:
    """Stored bytes per weight, read off a sample in the recipe's format."""
    side = 1024  # whole blocks of every format, scales of scales included
    layer = quantizer(recipe)(torch.zeros(side, side).to(DTYPES[recipe.model.dtype]), None)
    return layer.stored_bytes / side**2


def optimizer_bytes(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes of state after one step of the very optimizer that training builds, on tensors without storage.

    Where the update of a parameter depends on its own gradient alone, one of each kind is stepped and stands for all.
    """
    together = recipe.optimizer.model_copy(update={"per_layer": False})  # the same state, in one step
    optimizer = build_optimizer(recipe.model_copy(update={"optimizer": together}), infos)
    if contract_of(optimizer).calls_closure:
        return updates.state_bytes(optimizer)
    kinds = [_kind(info) for info in infos]
    one_each = dict(zip(kinds, infos, strict=True))
    alone = "per_parameter" in OPTIMIZERS.declared(recipe.optimizer.method).provides
    for info in one_each.values() if alone else infos:
        info.param.grad = torch.empty_like(info.param)
    optimizer.step()
    if alone:
        alike = Counter(kinds)
        of_one = {kind: updates.state_bytes_of(optimizer, info.param) for kind, info in one_each.items()}
        found = sum(alike[kind] * size for kind, size in of_one.items())
    else:
        found = updates.state_bytes(optimizer)
    optimizer.zero_grad()
    return found


def _kind(info: ParamInfo) -> tuple[object, ...]:
    """What decides how much an optimizer keeps of a parameter."""
    bias = info.name.endswith("bias")
    return tuple(info.param.shape), info.role, info.param.dtype, info.head_rows, info.transposed, bias
