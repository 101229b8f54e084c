"""What adapter_config.json says: of every method, and of sites that differ from the others."""

from __future__ import annotations

from typing import TypeAlias

from lrft.core.adapted import Adapted
from lrft.model.causal_lm import CausalLM
from lrft.model.origin import loadable_name
from lrft.model.sites import linear_sites
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json

Keys: TypeAlias = dict[str, Json]
"""Of a PEFT configuration."""


def shared_keys(model: CausalLM, recipe: Recipe, sites: list[tuple[str, Adapted]]) -> Keys:
    """What adapter_config.json says of every method."""
    return {
        "base_model_name_or_path": loadable_name(recipe.model.name),
        "revision": recipe.model.revision or getattr(model.hf.config, "_commit_hash", None),
        "task_type": "SEQ_CLS" if model.labels else "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "target_modules": target_modules(model, [name for name, _ in sites]),
    }


def target_modules(model: CausalLM, names: list[str]) -> list[str]:
    """Last parts of the module names where they say it all (what servers read), full paths otherwise; sorted."""
    leaves = {name.rpartition(".")[2] for name in names}
    linear = {name for name, _, _ in frozen_layers(model)} | linear_sites(model).keys() | model.direct
    told = {name for name in linear if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if told == set(names) else sorted(names)


def patterns(keys: dict[str, Keys], common: Keys) -> Keys | None:
    """Sites whose rank or alpha is not the common one, under PEFT's `rank_pattern` and `alpha_pattern`.

    None where PEFT cannot say it: it has these patterns for LoRA alone.
    """
    if "lora_alpha" not in common:
        return {} if all(own == common for own in keys.values()) else None
    ranks = {name: own["r"] for name, own in keys.items() if own["r"] != common["r"]}
    alphas = {
        name: own["lora_alpha"] for name, own in keys.items() if own["lora_alpha"] != common["lora_alpha"]
    }
    return {k: v for k, v in (("rank_pattern", ranks), ("alpha_pattern", alphas)) if v}
