"""`lrft train --dry-run`: everything checked, counted and estimated, no weights loaded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from rich import print as show
from rich.table import Table

from lrft.assemble.adapt import Adaptation, adapt, quantizer
from lrft.assemble.job import build_optimizer
from lrft.assemble.text import read_text, train_data
from lrft.core.axes import ADAPTERS
from lrft.core.params import ParamInfo
from lrft.data.show import facts
from lrft.model.attach import attach_without_weights
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.sites import linear_sites
from lrft.model.trained import parameter_infos
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.train import updates


def plan_recipe(loaded: LoadedRecipe, trust_remote_code: bool = False) -> dict[str, Any]:
    """The plan of a recipe as plain values: data, steps, targets, exact counts, bytes.

    Parameter counts and optimizer bytes are read off the modules and the optimizer that training would build;
    activation bytes are an estimate and say so.

    Raises:
        RecipeError, DataError: what training would raise before its first step.
    """
    recipe = loaded.recipe
    text = read_text(recipe, trust_remote_code=trust_remote_code)
    adaptation = adapt(recipe, trust_remote_code=trust_remote_code, meta=True)
    base = sum(parameter.numel() for parameter in adaptation.model.hf.parameters())
    linear = sum(s.in_features * s.out_features for s in linear_sites(adaptation.model).values())
    infos = _planned_parameters(recipe, adaptation)
    settings = recipe.train
    trainable = sum(info.param.numel() for info in infos)
    return {
        "recipe": loaded.name,
        "recipe_hash": recipe_hash(recipe),
        "data": dict(facts(text.report)) if text.report else {},
        "steps": train_data(recipe, text).total_steps(settings.max_steps, settings.epochs),
        "targets": [
            {"pattern": r.pattern, "modules": r.modules, "share": r.share} for r in adaptation.targets
        ],
        "base_parameters": base,
        "trainable_parameters": trainable,
        "trainable_percent": 100 * trainable / (base + sum(i.param.numel() for i in infos if i.site)),
        "ranks_undecided": adaptation.undecided,
        "memory_bytes": _memory(recipe, adaptation.model, infos, base, linear),
    }


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as tables on standard output."""
    table = Table("plan", plan["recipe"])
    for label, value in plan["data"].items():
        table.add_row(label, str(value))
    table.add_row("steps", str(plan["steps"]))
    for row in plan["targets"]:
        table.add_row(
            f"target {row['pattern']}", f"{row['modules']} layers, {row['share']:.1%} of linear parameters"
        )
    table.add_row("base parameters", f"{plan['base_parameters']:,}")
    share = f"{plan['trainable_percent']:.3f} % of base + trainable"
    table.add_row("trainable parameters", f"{plan['trainable_parameters']:,} ({share})")
    if plan["ranks_undecided"]:
        table.add_row("", "before a planner that looks at weights or data has had its say")
    for label, size in plan["memory_bytes"].items():
        table.add_row(f"memory: {label.replace('_', ' ')}", f"{size / 2**20:,.1f} MiB")
    show(table)


def _planned_parameters(recipe: Recipe, adaptation: Adaptation) -> list[ParamInfo]:
    """The trainable parameters, from adapters built without storage, put where training puts them."""
    model = adaptation.model
    if recipe.adapter is not None:
        with torch.device("meta"):
            attach_without_weights(
                model, adaptation.plan, ADAPTERS.get(recipe.adapter.method), recipe.adapter
            )
    return parameter_infos(model)


def _memory(
    recipe: Recipe, model: CausalLM, infos: list[ParamInfo], base: int, linear: int
) -> dict[str, int]:
    item = DTYPES[recipe.model.dtype].itemsize
    trained = {info.name for info in infos if not info.site}
    stored = item if trained and recipe.trainable.weights == "full" else _bytes_per_weight(recipe)
    gradients = [info.param.numel() * info.param.element_size() for info in infos]
    sizes = {
        "linear_weights": round(linear * stored),
        "other_weights": (base - linear) * item,
        "adapter": sum(i.param.numel() * i.param.element_size() for i in infos if i.site),
        "gradients": max(gradients) if recipe.optimizer.per_layer else sum(gradients),
        "optimizer_state": _optimizer_bytes(recipe, infos),
        "activations_estimated": _activation_bytes(recipe, model),
    }
    return {**sizes, "total_estimated": sum(sizes.values())}


def _bytes_per_weight(recipe: Recipe) -> float:
    """Stored bytes per weight, read off a sample in the recipe's format."""
    side = 512
    layer = quantizer(recipe)(torch.randn(side, side).to(DTYPES[recipe.model.dtype]), None)
    return layer.stored_bytes / side**2


def _optimizer_bytes(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes of state after one step of the very optimizer that training builds, on tensors without storage."""
    together = recipe.optimizer.model_copy(update={"per_layer": False})  # the same state, in one step
    recipe = recipe.model_copy(update={"optimizer": together})
    optimizer = build_optimizer(recipe, infos)
    if getattr(optimizer, "calls_closure", False):
        return updates.state_bytes(optimizer)
    if not getattr(optimizer, "steps_without_storage", True):
        return _sampled_optimizer_bytes(recipe, infos)
    for info in infos:
        info.param.grad = torch.empty_like(info.param)
    optimizer.step()
    found = updates.state_bytes(optimizer)
    optimizer.zero_grad()
    return found


def _sampled_optimizer_bytes(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """The same for optimizers whose kernels need storage: one parameter of each shape and role stands for all."""
    kinds = Counter((tuple(info.param.shape), info.role, info.param.dtype) for info in infos)
    total = 0
    for (shape, role, dtype), number in kinds.items():
        param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        optimizer = build_optimizer(recipe, [ParamInfo("p", param, role)])
        param.grad = torch.ones(shape, dtype=dtype)
        optimizer.step()
        total += number * updates.state_bytes(optimizer)
    return total


def _activation_bytes(recipe: Recipe, model: CausalLM) -> int:
    """A rough estimate of what one micro-batch keeps for the backward pass, from the widths of the blocks."""
    config = model.hf.config.get_text_config()
    item = DTYPES[recipe.model.dtype].itemsize
    tokens = recipe.train.batch_size * recipe.train.max_length
    hidden, layers = config.hidden_size, config.num_hidden_layers
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    block = item * (12 * hidden + 4 * wide) + 16 * hidden  # saved inputs, float32 copies of the norms
    if recipe.model.activation_checkpointing:
        return tokens * (layers * hidden * item + block)
    return tokens * layers * block
