"""Checkpoints whose linear layers bitsandbytes has stored in 4 bits already: their codes are taken over as they are.

A layer is `NAME.weight`, its codes, and beside it `NAME.weight.absmax`, `.quant_map` and others, of which
`.quant_state.bitsandbytes__TYPE` holds the shape and the settings as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.model.hf import HF, ModelConfig
from lrft.model.stored import Stored, read_tensor, stored_at
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig
from lrft.registry.errors import RecipeError, UsageError

STATE = "quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Packing:
    """How the configuration says that the layers are stored: a storage of recipes by its name, and its setting."""

    method: str
    double_quant: bool


@dataclass(frozen=True)
class Packed(Stored):
    """A weight that is still in its files, in 4 bits; `shape` and `dtype` are those of the dense one.

    Attributes:
        parts: what stands beside the codes, and the codes as `weight` -> file.
    """

    method: str = ""
    block_size: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.layer(dtype).weight()

    def layer(self, dtype: torch.dtype, bias: Tensor | None = None) -> FrozenLinear:
        """The layer in its storage, codes bit for bit, computing in `dtype`.

        Raises:
            RecipeError: the codes are not those that this storage makes.
        """
        prefix = f"{self.key}."
        tensors = {
            key.removeprefix(prefix) if key != self.key else "weight": read_tensor(file, key)
            for key, file in self.parts.items()
        }
        try:
            layer: FrozenLinear = QUANTIZERS.get(self.method).unpack(tensors, bias, dtype)
        except UsageError as error:
            raise RecipeError(f"{self.key}: {error}", "model.name") from None
        return layer


def take_packing(config: ModelConfig) -> Packing | None:
    """How the layers are stored, taken out of a configuration that is then of a dense model; None where they are dense.

    Args:
        config: one that `check_config` let pass.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    from transformers import BitsAndBytesConfig

    plain = stored if isinstance(stored, dict) else stored.to_dict()
    delattr(config, "quantization_config")
    default = BitsAndBytesConfig(load_in_4bit=True)
    return Packing(
        str(plain.get("bnb_4bit_quant_type", default.bnb_4bit_quant_type)),
        bool(plain.get("bnb_4bit_use_double_quant", default.bnb_4bit_use_double_quant)),
    )


def find_packed(files: Mapping[str, str]) -> dict[str, Packed]:
    """The weights that are stored in 4 bits, by key.

    Args:
        files: key of a tensor -> the file it is in.
    """
    found = {}
    for key, file in files.items():
        name, _, method = key.partition(f".{STATE}")
        if method:
            state = json.loads(bytes(read_tensor(file, key).tolist()))
            dtype = getattr(torch, state["dtype"])
            parts = {k: f for k, f in files.items() if k == name or k.startswith(f"{name}.")}
            found[name] = Packed(
                files[name], name, tuple(state["shape"]), dtype, method, state["blocksize"], parts
            )
    return found


def packed_layers(hf: HF) -> dict[str, Packed]:
    """Path of a linear layer -> its weight in 4 bits, of a model that waits for its weights.

    Raises:
        RecipeError: a layer is no plain linear one.
    """
    found = {}
    for name, parameter in hf.named_parameters():
        stored = stored_at(parameter)
        if isinstance(stored, Packed):
            layer = name.removesuffix(".weight")
            if not isinstance(hf.get_submodule(layer), nn.Linear):
                raise RecipeError(
                    f"{name} is stored in 4 bits and is transposed; name the unquantized checkpoint",
                    "model.name",
                )
            found[layer] = stored
    return found


def check_packing(
    name: str, packing: Packing | None, packed: Mapping[str, Packed], storage: MethodConfig
) -> None:
    """Refuse a storage that is not the one that the layers of the checkpoint are in.

    Args:
        name: of the model, in the recipe.
        packed: its layers, where they are known.
        storage: the recipe's quantization section.

    Raises:
        RecipeError: says what to write.
    """
    if packing is None:
        return
    sizes = sorted({layer.block_size for layer in packed.values()})
    wanted = {"method": packing.method, "double_quant": packing.double_quant}
    wanted |= {"block_size": sizes[0]} if len(sizes) == 1 else {}
    given = storage.model_dump()
    if len(sizes) > 1 or any(given.get(key) != value for key, value in wanted.items()):
        written = ", ".join(f"{key}: {str(value).lower()}" for key, value in wanted.items())
        raise RecipeError(
            f"{name!r} holds layers that are stored in 4 bits already, and are taken as they are; write "
            f"{{{written}}}, or name the unquantized checkpoint",
            "quantization",
        )
