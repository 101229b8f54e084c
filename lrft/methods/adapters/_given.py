"""LoRA adapters that were trained before, read from the folders PEFT and this package write."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from lrft.files.model_folder import read_adapter_config
from lrft.registry.errors import DamagedFile, RecipeError
from lrft.registry.json import Json
from lrft.registry.peft_pattern import value_at

T = TypeVar("T")

PREFIX = "base_model.model."
TENSOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
# Starts that took a part of the base's weight away, which the factors alone do not bring back.
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Keys of an adapter_config.json that say nothing of what the adapter computes, or are read here: of every method,
OF_ALL = {
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "target_modules", "exclude_modules", "fan_in_fan_out"),
}
# and of LoRA and DoRA.
READ = OF_ALL | {
    *("layers_to_transform", "layers_pattern", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    *("init_lora_weights", "rank_pattern"),
    *("alpha_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "runtime_config", "ephemeral_gpu_offload", "ensure_weight_tying", "velora_config"),
}


class LoraConfig(TypedDict):
    """What is read of an adapter_config.json; keys that PEFT does not write may be missing."""

    lora_alpha: float
    peft_type: NotRequired[str]
    init_lora_weights: NotRequired[bool | str]
    alpha_pattern: NotRequired[dict[str, float] | None]
    bias: NotRequired[str]
    layer_replication: NotRequired[list[list[int]] | None]
    lora_bias: NotRequired[bool]
    lora_dropout: NotRequired[float]
    use_dora: NotRequired[bool]
    use_rslora: NotRequired[bool]


@dataclass(frozen=True)
class Factors:
    """One adapter at one site: scale * B A.

    Attributes:
        A: (r, in) and B: (out, r), float32.
        scale: alpha / r, or alpha / sqrt(r).
        dropout: probability that training drops an input of the adapter.
    """

    A: Tensor
    B: Tensor
    scale: float
    dropout: float


def read_lora(folder: str, key: str) -> dict[str, Factors]:
    """Site name -> factors of the LoRA in `folder`, or in the folder `adapter` inside it (a run's).

    Raises:
        RecipeError: at `key`: no such folder, or what it holds is not a plain LoRA.
    """
    place = Path(folder).expanduser()
    if not (place / "adapter_config.json").is_file():
        place = place / "adapter"
    file = place / "adapter_model.safetensors"
    if not (place / "adapter_config.json").is_file() or not file.is_file():
        raise RecipeError(
            f"{folder} holds no adapter_config.json and adapter_model.safetensors; "
            "give the folder of a LoRA, or of the run that trained one",
            key,
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = cast("LoraConfig", read_adapter_config(place))
        tensors = load_file(str(file), device="cpu")
    except (DamagedFile, SafetensorError) as error:
        raise RecipeError(str(error), key) from error
    _check_plain(config, folder, key)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if match is None:
            raise RecipeError(f"{folder} holds {name}, which is no factor of a LoRA on a linear layer", key)
        parts.setdefault(match[1], {})[match[2]] = tensor.to(torch.float32)
    return {site: _factors(site, part, config) for site, part in parts.items()}


def read_keys(config: Mapping[str, Any], site: str) -> dict[str, Json] | None:
    """The settings at one site of a LoRA or DoRA that PEFT wrote; None of any other method.

    Raises:
        ValueError: it has something that neither method here has.
    """
    if config.get("peft_type") != "LORA":
        return None
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(RESIDUAL):
        raise ValueError(
            f"init_lora_weights: {start} says that it fits a base that the start changed; save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    refuse_unread(config, READ)
    return {
        "rank": value_at(config.get("rank_pattern"), site, config["r"]),
        "alpha": float(value_at(config.get("alpha_pattern"), site, config["lora_alpha"])),
        "rslora": bool(config.get("use_rslora")),
    }


def refuse_unread(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse keys that say something and are not read.

    Raises:
        ValueError: names the first.
    """
    unread = [
        key
        for key, value in config.items()
        if key not in known and value not in (None, False, [], {}, "none")
    ]
    if unread:
        what = f"has {unread[0]}: {config[unread[0]]!r}, which is not read"
        raise ValueError(f"{what}; merge it with PEFT, and name the merged model as model.name")


def _check_plain(config: LoraConfig, folder: str, key: str) -> None:
    start = str(config.get("init_lora_weights", True)).lower()
    faults = {
        f"is of type {config.get('peft_type')}": config.get("peft_type") != "LORA",
        "is a DoRA": bool(config.get("use_dora")),
        "trains biases": config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
        "replicates layers": bool(config.get("layer_replication")),
        f"fits a base changed by {start}": start.startswith(RESIDUAL),
    }
    for fault, found in faults.items():
        if found:
            raise RecipeError(f"{folder} {fault}; only a plain LoRA can be an expert", key)


def _factors(site: str, part: dict[str, Tensor], config: LoraConfig) -> Factors:
    A, B = part["A"], part["B"]
    alpha = value_at(config.get("alpha_pattern"), site, config["lora_alpha"])
    rank = A.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(A, B, scale, float(config.get("lora_dropout", 0.0)))
