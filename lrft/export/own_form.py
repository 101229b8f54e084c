"""Why an adapter is written under lrft's own names."""

from __future__ import annotations

from lrft.export.expert_form import on_experts, taken_for_experts
from lrft.model.causal_lm import CausalLM
from lrft.model.units import hides_units
from lrft.recipe.schema import Recipe


def why_own_form(model: CausalLM, recipe: Recipe) -> str:
    """One line on why the adapter folder has no PEFT form."""
    if recipe.adapter is None:
        return "PEFT has no form for base weights without an adapter"
    if names := taken_for_experts(model):
        return f"PEFT takes {', '.join(names)} of a mixture of experts for the experts themselves"
    if hides_units(model):
        return "an adapter cannot say which heads and channels of the base were pruned"
    beside = " with rows of new tokens" if recipe.model.add_tokens is not None else on_experts(model)
    return f"PEFT has no form for {recipe.adapter.method}{beside} as it was trained here"
