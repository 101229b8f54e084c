"""Checkpoints whose linear layers are stored in few bits already: their codes are taken over as they are.

Of bitsandbytes, a layer is `NAME.weight`, its codes, and beside it `NAME.weight.absmax`, `.quant_map` and others, of
which `.quant_state.bitsandbytes__TYPE` holds the shape and the settings as JSON. Other checkpoints hold no
`NAME.weight`; a storage says which tensors a layer is then (`lrft.core.foreign`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrft.core.foreign import Foreign
from lrft.core.frozen import FrozenLinear
from lrft.model.hf import HF, ModelConfig
from lrft.model.packing import Packing, packing_said, that_others_hold
from lrft.model.stored import Stored, read_tensor, shape_of, stored_at
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig
from lrft.registry.errors import RecipeError, UsageError
from lrft.registry.json import Json

STATE = "quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Packed(Stored):
    """A weight that is still in its files, in few bits; `shape` and `dtype` are those of the dense one.

    Attributes:
        parts: key of what the layer is stored as -> file.
        prefix: of these keys, which the storage does not want to know.
    """

    method: str = ""
    block_size: int | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.layer(dtype).weight()

    def layer(self, dtype: torch.dtype, bias: Tensor | None = None) -> FrozenLinear:
        """The layer in its storage, codes bit for bit, computing in `dtype`.

        Raises:
            RecipeError: the codes are not those that this storage makes.
        """
        tensors = {
            key.removeprefix(self.prefix) if key != self.key else "weight": read_tensor(file, key)
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
    delattr(config, "quantization_config")
    return packing_said(stored if isinstance(stored, dict) else stored.to_dict())


def find_packed(files: Mapping[str, str]) -> dict[str, Packed]:
    """The weights that are stored in few bits, by the key that a dense one would have.

    Args:
        files: key of a tensor -> the file it is in.
    """
    found = {}
    for method, kind in that_others_hold() if any(not key.endswith(".weight") for key in files) else ():
        for key in files:
            layer, _, leaf = key.rpartition(".")
            if leaf == kind.layer_keys[0]:
                found[f"{layer}.weight"] = _of_others(method, kind, layer, files)
    for key, file in files.items():
        name, _, method = key.partition(f".{STATE}")
        if method:
            state = json.loads(bytes(read_tensor(file, key).tolist()))
            dtype = getattr(torch, state["dtype"])
            parts = {k: f for k, f in files.items() if k == name or k.startswith(f"{name}.")}
            found[name] = Packed(
                files[name],
                name,
                tuple(state["shape"]),
                dtype,
                method,
                state["blocksize"],
                parts,
                f"{name}.",
            )
    return found


def _of_others(method: str, kind: type[Foreign], layer: str, files: Mapping[str, str]) -> Packed:
    keys = {leaf: f"{layer}.{leaf}" for leaf in kind.layer_keys if f"{layer}.{leaf}" in files}
    parts = {key: files[key] for key in keys.values()}
    weight = f"{layer}.weight"
    try:
        shape = kind.dense_shape({leaf: shape_of(files[key], key) for leaf, key in keys.items()})
    except (KeyError, ValueError, ZeroDivisionError):
        raise RecipeError(
            f"{weight}: what the checkpoint holds of it is no whole layer in few bits; give one that is whole",
            "model.name",
        ) from None
    return Packed(
        parts[f"{layer}.{kind.layer_keys[0]}"], weight, shape, torch.float16, method, None, parts, f"{layer}."
    )


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
                    f"{name} is stored in few bits and is transposed; name the unquantized checkpoint",
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
    sizes = sorted({layer.block_size for layer in packed.values() if layer.block_size is not None})
    wanted: dict[str, Json] = {"method": packing.method, **packing.settings}
    wanted |= {"block_size": sizes[0]} if len(sizes) == 1 else {}
    given = storage.model_dump()
    if len(sizes) > 1 or any(given.get(key) != value for key, value in wanted.items()):
        written = ", ".join(f"{key}: {_in_yaml(value)}" for key, value in wanted.items())
        raise RecipeError(
            f"{name!r} holds layers that are stored in few bits already, and are taken as they are; write "
            f"{{{written}}}, or name the unquantized checkpoint",
            "quantization",
        )


def _in_yaml(value: Json) -> str:
    return "null" if value is None else str(value).lower()
