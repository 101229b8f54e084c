"""What would bring a merged model closer to its adapter."""

from __future__ import annotations

import math
from collections.abc import Callable

from lrft.export.fidelity import Fidelity, Nearest
from lrft.model.causal_lm import CausalLM
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS


def remedy(
    recipe: Recipe, model: CausalLM, record: Fidelity, within: Callable[[Fidelity | Nearest], bool]
) -> str:
    """The setting that stays closer, of those that are not in use already."""
    export = recipe.export
    if "requantized" in record:
        if "file_levels" in QUANTIZERS.declared(record["requantized"]).provides:
            return "a merge without --requantize, or `lrft export` in q8_0, stays closer"
        rank = 2 * record["kept_rank"] or 16
        return f"`--keep-rank {rank}`, a storage of more bits, or a merge without --requantize stays closer"
    bases = [base for _, base, _ in frozen_layers(model)]
    if export.onto == "original" and any("dense_base" not in base.original.provides for base in bases):
        return "the adapter was trained on the rounded base, so `--onto dequantized` stays closer"
    if export.dtype == "float16" and not math.isfinite(record["kl_mean"]):
        return "its activations are beyond float16, so use `--dtype bfloat16`"
    if export.rounding == "nearest":
        return "nearest rounding erases small changes; `--rounding stochastic` stays closer"
    if "nearest" in record and within(record["nearest"]):
        return "the change is large, so `--rounding nearest` stays closer"
    if export.rounding == "stochastic":
        return "`--rounding feedback` or `--dtype float32` stays closer"
    if export.rounding == "feedback":
        return "`--dtype float32` stays closer"
    return "nothing was rounded, so keep the adapter beside its base or allow more with export.tolerance"
