"""What a training is told of what takes longer, or is less exact, than it might be."""

from __future__ import annotations

import torch

from lrft.build.text import Text
from lrft.core.in_layer import in_layer
from lrft.core.stages import Plan
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import ALL
from lrft.model.text_part import parts_aside
from lrft.ops.linalg import ITERATIONS, LARGEST_EXACT
from lrft.ops.products import FEW, working
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS


def of_costs(recipe: Recipe, slow: list[str], device: torch.device) -> list[str]:
    """What a training is told of what takes longer than it might; `slow` are parts that could not be fused."""
    told = QUANTIZERS.get(recipe.quantization.method).on_cpu if device.type == "cpu" else ""
    notes = [f"quantization: {told}"] if told else []
    dtype = getattr(torch, recipe.model.dtype)
    if working(torch.empty(FEW, 1, dtype=dtype, device=device)) != dtype:
        notes.append(
            f"model.dtype: this processor multiplies {recipe.model.dtype} more slowly than float32, so products are "
            "taken in float32 and rounded"
        )
    if slow:
        notes.append(
            f"model.name: {' and '.join(slow)} run as the model's own code has them, none in one node"
        )
    return notes


def of_parts_aside(model: CausalLM) -> list[str]:
    """What of a model that sees or hears does not train on text."""
    named = " and ".join(part.rstrip(".") for part in parts_aside(model.hf))
    return [f"model.name: text does not run through {named}, so nothing there trains"] if named else []


def of_attentions(recipe: Recipe, plan: Plan, model: CausalLM) -> list[str]:
    """How many layers have none of the attentions that an adapter goes on, but something in its place (Mamba, LFM2)."""
    asked = recipe.adapter
    names = [entry.site.name for entry in plan.values() if entry.site.kind == "attention"]
    if asked is None or not names or asked.targets != ALL or asked.exclude or asked.layers is not None:
        return []
    total = model.hf.config.get_text_config().num_hidden_layers
    without = total - len({found.number for name in names if (found := in_layer(name))})
    told = f"adapter: {without} of {total} layers have no attention with layers k_proj and v_proj, and get none there"
    return [told] if without else []


def of_new_tokens(recipe: Recipe, model: CausalLM, text: Text | None) -> list[str]:
    """Which new tokens no training row has: their rows only learn that they are never the next token."""
    asked, rows = recipe.model.add_tokens, model.new_rows
    if asked is None or rows is None or text is None:
        return []
    unseen = set(range(rows.first, rows.first + rows.count))
    for row in text.train:
        unseen.difference_update(row.input_ids)
        if not unseen:
            return []
    named = ", ".join(repr(asked.texts[number - rows.first]) for number in sorted(unseen))
    return [f"model.add_tokens: no training row has {named}, so nothing is learnt but not to write it"]


def of_starts(recipe: Recipe, plan: Plan) -> list[str]:
    """What is told where an SVD that is exact by default is not, for the size of a layer."""
    init = recipe.init
    if init is None or getattr(init, "niter", ITERATIONS) is not None:
        return []
    large = [e for e in plan.values() if min(e.site.in_features, e.site.out_features) > LARGEST_EXACT]
    told = f"init.niter: the SVDs of {len(large)} layers above {LARGEST_EXACT:,} rows and columns are randomised with "
    return [f"{told}{ITERATIONS} iterations; `exact` takes far longer"] if large else []
