"""The experts of a mixture taken apart: every matrix of every expert is a linear layer, `EXPERTS.NUMBER.MATRIX`.

transformers holds the matrices of all experts of a block as tensors of three dimensions, and the classes that do so say
how they are stored and what comes between. Apart, each is a layer as any other: adapters go on it, storages of few
bits hold it, and one matrix of an expert that some token chose is decoded at a time. The matrices are views of the
tensors that were loaded, and become one again when the model is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.grouped import Grouped
from lrft.model.apart import DOWN, Apart, first_name, layers_of
from lrft.model.hf import HF
from lrft.model.promised import Turned, promise, stored_at
from lrft.registry.errors import RecipeError

SAID = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")


def split(hf: HF) -> None:
    """Take the experts of every mixture apart, in place; those that are apart stay so.

    Raises:
        RecipeError: the model has none whose class says how it holds them.
    """
    found = [module for module in hf.modules() if _is_whole(module)]
    if not found and not paths_apart(hf):
        message = f"{type(hf).__name__} has no experts that transformers can compute in groups; write whole"
        raise RecipeError(message, "model.experts")
    _leave_out_of_graphs()
    take_apart(hf)


def take_apart(hf: nn.Module) -> None:
    """The same of a model that is not compiled, which may have none."""
    for module in [module for module in hf.modules() if _is_whole(module)]:
        _split(module)


def _leave_out_of_graphs() -> None:
    """Keep `model.compile` off the mixing, whose counts of tokens change; only here, as it imports the compiler."""
    if not getattr(Apart.mix, "_torchdynamo_disable", False):
        Apart.mix = torch.compiler.disable(Apart.mix)  # type: ignore[method-assign]


def join(hf: HF) -> None:
    """Put the experts of every mixture together again, in place, as transformers has them."""
    for module in list(hf.modules()):
        if isinstance(module, Apart):
            _join(module)


def group(hf: nn.Module) -> None:
    """Let the experts of a model whose layers are in their storages be multiplied together, where that is possible."""
    for module in hf.modules():
        if isinstance(module, Apart):
            for name in (first_name(module), DOWN):
                if (found := Grouped.of(layers_of(module, name))) is not None:
                    module.groups[name] = found


def splits(hf: nn.Module) -> list[str]:
    """Paths of the tensors that `split` takes apart."""
    return [
        f"{path}.{name}"
        for path, module in hf.named_modules()
        if _is_whole(module)
        for name in (first_name(module), DOWN)
    ]


def paths_apart(hf: nn.Module) -> tuple[str, ...]:
    """Beginnings of the paths of all layers of experts that were taken apart."""
    return tuple(f"{path}." for path, module in hf.named_modules() if isinstance(module, Apart))


def tokens_of(hf: nn.Module, name: str) -> Callable[[], Tensor] | None:
    """Asks which tokens the expert of the layer called `name` is given, while it is called; None of another layer."""
    path, number, _ = f"..{name}".rsplit(".", 2)
    parent = hf.get_submodule(path.lstrip(".")) if number.isdigit() else None
    if not isinstance(parent, Apart):
        return None

    def tokens() -> Tensor:
        assert parent.by is not None, "asked while no token goes anywhere"
        return parent.by.tokens(int(number))

    return tokens


def _is_whole(module: nn.Module) -> bool:
    """Whether the module is of a class that says how it holds its experts, all in tensors of three dimensions."""
    if isinstance(module, Apart) or not all(hasattr(module, name) for name in SAID):
        return False
    held = [module._parameters.get(name) for name in (first_name(module), DOWN)]
    return all(tensor is not None and tensor.ndim == 3 for tensor in held)


def _split(module: Any) -> None:
    matrices = {name: module._parameters.pop(name) for name in (first_name(module), DOWN)}
    biases = {name: _values(module._parameters.pop(f"{name}_bias", None)) for name in matrices}
    for number in range(module.num_experts):
        expert = nn.Module()
        for name, tensor in matrices.items():
            assert tensor is not None, "it was found whole"
            bias = biases[name]
            weight = _matrix(tensor, number, module.is_transposed)
            expert.add_module(name, _layer(weight, None if bias is None else bias[number].clone()))
        module.add_module(str(number), expert)
    module.__class__ = _apart(type(module))  # type: ignore[arg-type]
    module.by, module.groups = None, {}


def _matrix(tensor: nn.Parameter, number: int, turned: bool) -> nn.Parameter:
    """One expert's matrix (out, in), a view of the tensor; of a promise, the promise of that matrix alone."""
    if (stored := stored_at(tensor)) is None:
        matrix = tensor.detach()[number]
        return nn.Parameter(matrix.mT if turned else matrix, requires_grad=False)
    part = stored.part(number)
    if turned:
        part = Turned(part.file, part.key, part.shape[::-1], part.dtype, part)
    return promise(part, tensor.dtype)


def _values(tensor: nn.Parameter | None) -> Tensor | None:
    if tensor is None or (stored := stored_at(tensor)) is None:
        return None if tensor is None else tensor.detach()
    return stored.read(tensor.dtype)


def _layer(weight: nn.Parameter, bias: Tensor | None) -> nn.Linear:
    out, into = weight.shape
    layer = nn.Linear(into, out, bias=bias is not None, device="meta")
    layer.weight = weight
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return layer.eval()


def _join(module: Apart) -> None:
    for name in (first_name(module), DOWN):
        layers = layers_of(module, name)
        for leaf, whole in (("weight", name), ("bias", f"{name}_bias")):
            tensors = list(_taken(layers, leaf))
            if tensors:
                turned = module.is_transposed and leaf == "weight"
                stack = torch.stack([tensor.mT if turned else tensor for tensor in tensors])
                module.register_parameter(whole, nn.Parameter(stack, requires_grad=False))
    for number in range(module.num_experts):
        del module._modules[str(number)]
    del module.by, module.groups
    own = next(kind for kind in type(module).__mro__ if not issubclass(kind, Apart))
    module.__class__ = own  # type: ignore[assignment]


def _taken(layers: list[nn.Module], leaf: str) -> Iterator[Tensor]:
    """The tensors called `leaf`, each detached from its layer, so that none is held twice for long."""
    for layer in layers:
        tensor = layer._parameters.pop(leaf, None)
        if tensor is not None:
            yield tensor.detach()


@cache
def _apart(kind: type[nn.Module]) -> type[nn.Module]:
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (Apart, kind), named)
