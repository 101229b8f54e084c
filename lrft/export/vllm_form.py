"""What vLLM takes as an adapter: pairs of one rank and one scale, and the list that a written folder is checked by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

from lrft.core.peft import LORA_NAMES
from lrft.export.checks import Check, check
from lrft.export.expert_form import EXPERT_NAMES
from lrft.export.pairs import Pair
from lrft.export.peft_format import PREFIX
from lrft.export.plain_form import CONFIG, TENSORS
from lrft.export.targets import VLLM
from lrft.files.json import read_object
from lrft.files.made_records import AdapterConfig
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's --max-lora-rank
READ = ("r", "lora_alpha", "target_modules")  # without which vLLM does not load a folder
ALONE = ("rank_pattern", "alpha_pattern")  # which it does not read, so it would take one rank for all


def one_rank(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs with their scales folded into B, all padded with zeros to the next rank that vLLM serves.

    Raises:
        UsageError: there is no such rank.
    """
    highest = max(pair.rank for pair in pairs.values())
    rank = next((rank for rank in RANKS if rank >= highest), None)
    if rank is None:
        site = next(name for name, pair in pairs.items() if pair.rank == highest)
        raise UsageError(
            f"--for {VLLM}: {site} needs rank {highest} and vLLM serves at most {RANKS[-1]}; give --rank {RANKS[-1]}, "
            "or a larger --error"
        )
    return {name: pair.padded(rank) for name, pair in pairs.items()}


def check_folder(folder: Path) -> list[Check]:
    """The checklist, verified on the files of a folder."""
    config: dict[str, Json] = read_object(folder / CONFIG, AdapterConfig, within=folder)
    shapes: dict[str, tuple[list[int], str]] = {}
    with safe_open(folder / TENSORS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            shapes[name] = list(part.get_shape()), str(part.get_dtype())
    return [*_config_checks(config), *_tensor_checks(config, shapes)]


def _config_checks(config: Mapping[str, Json]) -> list[Check]:
    missing = [key for key in READ if config.get(key) is None]
    said = [key for key in ALONE if config.get(key)]
    rank = config.get("r")
    return [
        check("r, lora_alpha and target_modules are there", missing, "missing {}"),
        check(f"r is one of {', '.join(map(str, RANKS))}", [] if rank in RANKS else [rank], "it is {}"),
        check(
            "the scale is in B: lora_alpha is r", [] if config.get("lora_alpha") == rank else ["not"], "{}"
        ),
        check("one rank and one alpha for all layers", said, "{} is not empty"),
        check("no scaling by the root of the rank", ["use_rslora"] if config.get("use_rslora") else [], "{}"),
        check("no magnitudes", ["use_dora"] if config.get("use_dora") else []),
        check("no biases", [config["bias"]] if config.get("bias", "none") != "none" else [], "bias is {}"),
        check("no whole modules", list(_listed(config.get("modules_to_save"))), "modules_to_save has {}"),
        check(
            "weights are stored as (out, in)",
            ["fan_in_fan_out"] if config.get("fan_in_fan_out") else [],
            "{}",
        ),
    ]


def _tensor_checks(config: Mapping[str, Json], shapes: Mapping[str, tuple[list[int], str]]) -> list[Check]:
    ends = {leaf: f".{LORA_NAMES[leaf]}" for leaf in "AB"}
    strangers = [n for n in shapes if not (n.startswith(PREFIX) and n.endswith(tuple(ends.values())))]
    halves = {leaf: {n.removesuffix(end) for n in shapes if n.endswith(end)} for leaf, end in ends.items()}
    single = sorted(halves["A"] ^ halves["B"])
    wrong = [
        n for n, (shape, _) in shapes.items() if shape[0 if n.endswith(ends["A"]) else -1] != config.get("r")
    ]
    leaves = sorted({site.rpartition(".")[2] for site in halves["A"]})
    named = sorted(str(name).rpartition(".")[2] for name in _listed(config.get("target_modules")))
    dtypes = sorted({dtype for _, dtype in shapes.values()})
    experts = [
        site for site in halves["A"] if ".experts." in site and site.rpartition(".")[2] in EXPERT_NAMES
    ]
    return [
        check("every tensor is a factor of a pair", [*strangers, *single], "{} is not"),
        check("every factor has rank r", wrong, "{} has not"),
        check(
            "target_modules names the layers of the file",
            [] if set(leaves) == set(named) else leaves,
            "file: {}",
        ),
        check("one precision, bfloat16, float16 or float32", _odd(dtypes)),
        check("no expert of a mixture by itself", experts),
    ]


def _odd(dtypes: list[str]) -> list[str]:
    return [] if len(dtypes) == 1 and dtypes[0] in ("BF16", "F16", "F32") else dtypes


def _listed(value: Json | None) -> list[Json]:
    return value if isinstance(value, list) else [] if value is None else [value]
