"""Keys and values where attention keeps them: behind the rotation to a position, before a cache or a product has them.

An attention of transformers rotates queries and keys by a function that its code calls by one name, and has its values
from a layer of their own. Its class is replaced by a subclass with the same code that finds another function under
that name. Whether the keys and values that a cache then holds are those is asked of the model itself (`prove_kept`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.kept import Keeping
from lrft.model.batching import stock_attention
from lrft.model.causal_lm import CausalLM
from lrft.model.fused import ROTATION
from lrft.registry.errors import RecipeError, first_line

KEYS, VALUES = "k_proj", "v_proj"
Change = Callable[[nn.Module, str, Tensor], Tensor]
"""(an attention, name of its layer, (B, heads, L, head)) -> what it keeps."""

_inside: list[nn.Module] = []  # attentions whose forward pass runs now, the innermost last
_seen: dict[tuple[int, str], Tensor] | None = None  # what was kept last, while `prove_kept` looks


def change_kept(model: CausalLM) -> None:
    """Let adapters that are `Keeping` change what attention keeps of keys and values.

    Raises:
        RecipeError: the attention is of another form, or has such an adapter at one of the two layers alone.
    """
    found: dict[str, set[str]] = {}
    names = []
    for path, module in model.hf.named_modules():
        if isinstance(module, Adapted) and isinstance(module.adapter, Keeping) and module.adapter.keeps:
            names.append(module.adapter.name)
            parent, _, leaf = path.rpartition(".")
            if leaf in (KEYS, VALUES):
                found.setdefault(parent, set()).add(leaf)
    if not names:
        return
    half = next((path for path, leaves in found.items() if len(leaves) < 2), None)
    if half is not None or not found:
        where = "no layer of either" if half is None else f"one of the two in {half}"
        message = f"{names[0]} changes keys and values as they are kept, and adapts {where}; name {KEYS} and {VALUES}"
        raise RecipeError(message, "adapter.targets")
    _put(model.hf, found, _by_adapters)


@contextmanager
def watching(hf: nn.Module, sites: Collection[str], hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hear of what attention keeps: of `sites`, paths of layers of keys or values, (B, heads, L, head)."""
    parents = {path.rpartition(".")[0] for path in sites}

    def told(module: nn.Module, leaf: str, part: Tensor) -> Tensor:
        path = f"{paths[id(module)]}.{leaf}"
        if path in sites:
            hear(path, part)
        return part

    paths = {id(hf.get_submodule(path)): path for path in parents}
    undo = _put(hf, parents, told)
    try:
        yield
    finally:
        undo()


def is_kept(path: str) -> bool:
    """Whether a layer by its path is one that keys or values come from."""
    return path.rpartition(".")[2] in (KEYS, VALUES)


@torch.no_grad()
def prove_kept(model: CausalLM) -> None:
    """Generate from a few tokens, and compare what the model's own cache holds with what was to be kept.

    Raises:
        RecipeError: it holds something else.
    """
    global _seen
    changed = {path: m for path, m in model.hf.named_modules() if getattr(m, "change_kept", None) is not None}
    if not changed:
        return
    training = model.training
    model.eval()
    _seen = {}
    try:
        with stock_attention(model.hf):
            ids = torch.tensor([[1, 2, 3]], device=model.device)
            given: Any = model.hf(input_ids=ids, use_cache=True)
        cache = given.past_key_values
        for path, module in changed.items():
            layer: Any = cache.layers[module.layer_idx]
            held = {KEYS: layer.keys, VALUES: layer.values}
            if any(not torch.equal(held[leaf], _seen[id(module), leaf]) for leaf in held):
                raise ValueError(f"the cache of {path} holds other numbers")
    except Exception as error:  # whatever a model's own code raises
        raise _of_another_form(model.hf, f"{type(error).__name__}: {first_line(error)}") from None
    finally:
        _seen = None
        model.train(training)


def _put(hf: nn.Module, parents: Collection[str], change: Change) -> Callable[[], None]:
    """Give attentions the class that asks `change`; what takes it back."""
    before, made = list[tuple[Any, type[nn.Module]]](), dict[type[nn.Module], type[nn.Module]]()
    for path in parents:
        module: Any = hf.get_submodule(path)
        kind = type(module)
        if kind not in made:
            made[kind] = _asking(kind, hf)
        before.append((module, kind))
    for module, kind in before:
        module.__class__ = made[kind]
        module.change_kept = change

    def undo() -> None:
        for module, kind in before:
            module.__class__ = kind
            del module.change_kept

    return undo


def _asking(kind: type[nn.Module], hf: nn.Module) -> type[nn.Module]:
    """A class like that of an attention whose keys, as its code rotates them, and values are changed."""
    own: Any = kind.forward
    if ROTATION not in getattr(getattr(own, "__code__", None), "co_names", ()):
        raise _of_another_form(hf, f"{kind.__name__} does not call {ROTATION}")
    names = {**own.__globals__, ROTATION: _rotating(own.__globals__[ROTATION])}
    copy: Any = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__

    def forward(self: nn.Module, *arguments: object, **named: object) -> object:
        handle = self.get_submodule(VALUES).register_forward_hook(_changing_values)
        _inside.append(self)
        try:
            return copy(self, *arguments, **named)
        finally:
            _inside.pop()
            handle.remove()

    described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**described, "forward": forward})


def _rotating(own: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(q: Tensor, k: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        turned, keys = own(q, k, *arguments, **named)
        return turned, _changed(_inside[-1], KEYS, keys)

    return rotate


def _changing_values(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    module: Any = _inside[-1]
    heads = output.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    return _changed(module, VALUES, heads).transpose(1, 2).flatten(-2)


def _changed(module: Any, leaf: str, part: Tensor) -> Tensor:
    kept: Tensor = module.change_kept(module, leaf, part)
    if _seen is not None:
        _seen[id(module), leaf] = kept.detach()
    return kept


def _by_adapters(module: nn.Module, leaf: str, part: Tensor) -> Tensor:
    layer = module.get_submodule(leaf)
    if isinstance(layer, Adapted) and layer.enabled and isinstance(layer.adapter, Keeping):
        return layer.adapter.kept(part)
    return part


def _of_another_form(hf: nn.Module, why: str) -> RecipeError:
    return RecipeError(
        f"{type(hf).__name__} keeps its keys and values in a way that is not known here ({why}), so they cannot be "
        "changed there; leave that out",
        "adapter",
    )
