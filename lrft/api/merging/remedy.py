"""Whether a merged model is close enough to its adapter, and what would bring it closer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lrft.core.notes import say
from lrft.export.fidelity import Fidelity, Nearest
from lrft.model.causal_lm import CausalLM
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import ToleranceError


def judge(record: Fidelity, out: Path, recipe: Recipe, model: CausalLM) -> None:
    """Say what was not compared; refuse what is too far off.

    Raises:
        ToleranceError: with the setting that stays closer.
    """
    if not record["generation"].get("agrees", True):
        raise ToleranceError(
            f"{out}: with its own settings the merged model stops elsewhere than the run does, see "
            "`generation` in fidelity.json; its generation_config.json or chat template is not that of training",
            record,
        )
    if not record["rows"]:
        say("data.eval: no held-out rows, so the merged model was not compared with the adapter")
        return
    if record["rows_from"] == "data.train":
        say("data.eval: no held-out rows, so the merged model was compared on rows of data.train")
    within = partial(_within, recipe.export.tolerance)
    if not within(record):
        raise ToleranceError(
            f"{out}: the merged model is {record['kl_mean']:.3g} nats per token from the adapter and its loss "
            f"{record['loss_difference']:+.3g} away, more than export.tolerance {record['tolerance']}; "
            f"{remedy(recipe, model, record, within)}",
            record,
        )


def _within(largest: float, figures: Fidelity | Nearest) -> bool:
    return figures["kl_mean"] <= largest and abs(figures["loss_difference"]) <= largest


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
