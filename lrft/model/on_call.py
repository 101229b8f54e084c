"""A model whose linear layers are given their weight whenever they are called, and keep nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lrft.model.causal_lm import CausalLM
from lrft.model.hf import HF
from lrft.model.stored import read_parameter, stored_at


class Originals(Mapping[str, Tensor]):
    """Parameters by name, of which those that wait for their values are read whenever they are looked up."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        stored = stored_at(parameter)
        return parameter.detach() if stored is None else stored.read(parameter.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def waiting(hf: HF) -> dict[str, nn.Parameter]:
    """The weights of linear layers that are still in their files, by name."""
    return {name: p for name, p in hf.named_parameters() if stored_at(p) is not None}


def read_on_call(model: CausalLM, device: torch.device) -> None:
    """Let the layers of a model whose weights are in their files (`open_model`) read them whenever they are called.

    Those whose weight other code reads (`direct`) keep theirs, and on a GPU that has room for all so do the others.
    """
    unread = waiting(model.hf)
    whole = fits(sum(p.nbytes for p in unread.values()), device)
    for name in unread:
        layer = name.removesuffix(".weight")
        if whole or layer in model.direct:
            read_parameter(model.hf, name)
            model.hf.get_submodule(layer).to(device)
    give_on_call(model.hf, {name: partial(_read, p) for name, p in waiting(model.hf).items()}, device)
    model.unread = None


def give_on_call(hf: HF, makers: Mapping[str, Callable[[], Tensor]], device: torch.device) -> None:
    """Let each of these layers, by the name of its weight, be given what `makers` make whenever it is called.

    Everything else goes to the device.
    """
    for name, make in makers.items():
        layer = hf.get_submodule(name.removesuffix(".weight"))
        layer._parameters["weight"] = None  # or all of the model could not go to the device
        layer.forward = partial(_called, layer, make, device)
    hf.to(device)


def share(model: CausalLM, like: CausalLM) -> None:
    """Let a model hold the parameters of another one, of the same names, that have its own values."""
    others = dict(like.hf.named_parameters())
    for name, own in model.hf.named_parameters():
        other = others.get(name)
        if other is None or own.is_meta or (own.shape, own.dtype, own.device) != _kind(other):
            continue
        if torch.equal(own, other):
            own.data = other.data


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may stay on a GPU, with a quarter of what is free left for computing; never on a CPU."""
    return device.type != "cpu" and size < 0.75 * torch.cuda.mem_get_info(device)[0]


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _read(parameter: nn.Parameter) -> Tensor:
    stored = stored_at(parameter)
    assert stored is not None, "only layers that wait are read"
    return stored.read(parameter.dtype)


def _called(layer: nn.Module, make: Callable[[], Tensor], device: torch.device, x: Tensor) -> Tensor:
    """The layer's own forward pass with the weight that is made now."""
    layer._parameters["weight"] = nn.Parameter(make().to(device), requires_grad=False)
    try:
        found: Tensor = type(layer).forward(layer, x)
        return found
    finally:
        layer._parameters["weight"] = None
