"""Pairs as a folder that PEFT loads as plain low-rank adapters, and back from such a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lrft.core.adapted import adapted
from lrft.core.peft import LORA_NAMES, lora_keys
from lrft.export.pairs import Pair
from lrft.export.peft_config import Keys, patterns, shared_keys
from lrft.export.peft_format import PREFIX, beside
from lrft.export.rounding import rounded
from lrft.files.json import read_object
from lrft.files.made_records import AdapterConfig
from lrft.model.causal_lm import CausalLM
from lrft.model.finite_file import EARLIER, finite_file
from lrft.recipe.schema import Recipe

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def plain_form(
    model: CausalLM, recipe: Recipe, pairs: Mapping[str, Pair], dtype: torch.dtype
) -> tuple[dict[str, bytes], Keys]:
    """File name -> content of a plain adapter with these pairs, by site, in `dtype`; and its configuration.

    Base weights that train go along, as in the run's own adapter folder.

    Raises:
        NumericalError: a number is not finite, or beyond `dtype`.
    """
    tensors, said = pair_form(pairs, dtype)
    sites = list(adapted(model.hf))
    extra, more = beside(model, set(pairs), str(said["peft_type"]))
    config = {**shared_keys(model, recipe, sites), **said, **more}
    config["fan_in_fan_out"] = bool(model.transposed)
    return files_of(tensors | extra, config), config


def pair_form(pairs: Mapping[str, Pair], dtype: torch.dtype) -> tuple[dict[str, Tensor], Keys]:
    """Tensors by PEFT's names, and what its configuration says of ranks and scales.

    Raises:
        NumericalError: a number is not finite, or beyond `dtype`.
    """
    tensors: dict[str, Tensor] = {}
    for site, pair in pairs.items():
        for leaf, value in (("A", pair.A), ("B", pair.B)):
            name = f"{site}.{LORA_NAMES[leaf]}"
            # A copy: sites may share a base, and a file holds every tensor for itself.
            tensors[f"{PREFIX}{name}"] = rounded(name, value, dtype, stochastic=False).contiguous().clone()
    keys = {site: lora_keys(pair.rank, pair.scale * pair.rank) for site, pair in pairs.items()}
    common = max(keys.values(), key=lambda one: int(str(one["r"])))
    return tensors, {**common, **(patterns(keys, common) or {})}


def files_of(tensors: Mapping[str, Tensor], config: Keys) -> dict[str, bytes]:
    """File name -> content."""
    return {
        TENSORS: finite_file(tensors, EARLIER, {"format": "pt"}),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def read_pairs(folder: Path) -> dict[str, Pair]:
    """Site -> its factors and scale, of a folder that `plain_form` wrote."""
    config = read_object(folder / CONFIG, AdapterConfig)
    tensors = load_file(folder / TENSORS)
    found = {}
    for name in tensors:
        site = name.removeprefix(PREFIX).removesuffix(f".{LORA_NAMES['A']}")
        if not name.endswith(LORA_NAMES["A"]):
            continue
        A, B = tensors[name], tensors[f"{PREFIX}{site}.{LORA_NAMES['B']}"]
        alpha = config.get("alpha_pattern", {}).get(site, config["lora_alpha"])
        found[site] = Pair(A, B, alpha / A.shape[0])
    return found
