"""What a configuration says of layers that are stored in few bits already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lrft.core.foreign import Foreign
from lrft.registry.axes import QUANTIZERS
from lrft.registry.json import Json


@dataclass(frozen=True)
class Packing:
    """How the configuration says that the layers are stored: a storage of recipes by its name, and its settings."""

    method: str
    settings: Mapping[str, Json]


def packing_said(said: Mapping[str, Any]) -> Packing | None:
    """How a `quantization_config` says that layers are stored; None where no storage here can take them.

    Raises:
        UsageError: a storage knows them, but not in this layout.
    """
    if said.get("quant_method") == "bitsandbytes" and said.get("load_in_4bit"):
        from transformers import BitsAndBytesConfig

        default = BitsAndBytesConfig(load_in_4bit=True)
        double = bool(said.get("bnb_4bit_use_double_quant", default.bnb_4bit_use_double_quant))
        method = str(said.get("bnb_4bit_quant_type", default.bnb_4bit_quant_type))
        return Packing(method, {"double_quant": double})
    for name, kind in that_others_hold():
        if (settings := kind.held_by(said)) is not None:
            return Packing(name, settings)
    return None


def that_others_hold() -> Iterator[tuple[str, type[Foreign]]]:
    """The storages of which checkpoints of others hold layers."""
    for name in QUANTIZERS.names():
        kind = QUANTIZERS.get(name)
        if issubclass(kind, Foreign):
            yield name, kind
