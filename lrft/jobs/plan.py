"""`lrft train --dry-run`: everything checked, counted and estimated, no weights loaded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from rich import print as show
from rich.table import Table

from lrft.assemble import adapt, quantizer, read_text, train_data
from lrft.core.axes import ADAPTERS, OPTIMIZERS
from lrft.core.params import ParamInfo
from lrft.core.stages import Plan
from lrft.data.show import facts
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.sites import linear_sites
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe


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
    infos = _planned_parameters(recipe, adaptation.plan)
    settings = recipe.train
    base = sum(parameter.numel() for parameter in adaptation.model.hf.parameters())
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
        "trainable_percent": 100 * trainable / (base + trainable),
        "memory_bytes": _memory(recipe, adaptation.model, infos),
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
    for label, size in plan["memory_bytes"].items():
        table.add_row(f"memory: {label.replace('_', ' ')}", f"{size / 2**20:,.1f} MiB")
    show(table)


def _planned_parameters(recipe: Recipe, plan: Plan) -> list[ParamInfo]:
    """The trainable parameters, from adapters built without storage."""
    cls = ADAPTERS.get(recipe.adapter.method)
    found = []
    with torch.device("meta"):
        for name, entry in plan.items():
            adapter = cls(type(recipe.adapter).model_validate(entry.settings), entry.site)
            for key, parameter in adapter.named_parameters():
                if parameter.requires_grad:
                    role = adapter.roles.get(key, "vector" if parameter.ndim == 1 else "matrix")
                    found.append(ParamInfo(f"{name}.{key}", parameter, role, name))
    return found


def _memory(recipe: Recipe, model: CausalLM, infos: list[ParamInfo]) -> dict[str, int]:
    item = DTYPES[recipe.model.dtype].itemsize
    linear = sum(site.in_features * site.out_features for site in linear_sites(model).values())
    other = sum(parameter.numel() for parameter in model.hf.parameters()) - linear
    trainable = sum(info.param.numel() for info in infos)
    sizes = {
        "linear_weights": round(linear * _bytes_per_weight(recipe)),
        "other_weights": other * item,
        "adapter": trainable * 4,
        "gradients": trainable * 4,
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
    """Bytes of state after one step of the real optimizer, one parameter of each shape and role standing for all."""
    kinds = Counter((tuple(info.param.shape), info.role) for info in infos)
    total = 0
    for (shape, role), number in kinds.items():
        param = torch.nn.Parameter(torch.zeros(shape))
        optimizer = OPTIMIZERS.get(recipe.optimizer.method).build(
            [ParamInfo("p", param, role)], recipe.optimizer
        )
        param.grad = torch.ones(shape)
        optimizer.step()
        state = optimizer.state[param]
        shared = ("qmap1", "qmap2")  # code tables, one for the whole optimizer
        tensors = [
            v for k, v in state.items() if isinstance(v, torch.Tensor) and v.numel() > 1 and k not in shared
        ]
        total += number * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
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
