"""Linear layers that nothing can stand in for: their weight is read by other code of the model, or they do more.

Fused kernels of state-space layers read weights instead of calling the layer: an adapter there would be passed over,
and a frozen form not be found. Some routers are linear layers by class and give more than a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.model.hf import HF


@torch.no_grad()
def find_direct(hf: HF) -> frozenset[str]:
    """Paths of linear layers whose weight is read from outside in a forward pass, or whose own is no linear map.

    A model without weights is asked in the same way; where its code cannot run so, what was read until then is known.
    """
    names = {id(module): name for name, module in hf.named_modules() if isinstance(module, nn.Linear)}
    ids = torch.tensor([[1, 2, 3, 4]], device=hf.get_input_embeddings().weight.device)
    found = {name for name, module in hf.named_modules() if _does_more(module)}
    bare = ids.device.type == "meta"
    for training in (False, True):
        answers = _Yes() if bare else nullcontext()  # type: ignore[no-untyped-call]
        with _mode(hf, training), torch.random.fork_rng(devices=[]), _listening(hf) as read, answers:
            try:
                hf(input_ids=ids, use_cache=False)
            except Exception:
                if not bare:
                    raise
        found |= {names[key] for key in read if key in names}
    return frozenset(found)


class _Yes(TorchDispatchMode):
    """Answers what a model without weights asks of its numbers, such as whether no token is masked: none is here."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return True
        return function(*args, **(kwargs or {}))


def _does_more(module: nn.Module) -> bool:
    """Whether a linear layer by class has a forward pass of its own that is no linear map."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    weight = module.weight
    x = torch.linspace(-1, 1, 2 * module.in_features, dtype=weight.dtype, device=weight.device).view(2, -1)
    expected = F.linear(x, weight, module.bias)
    try:
        y = module(x)
    except Exception:  # it takes other inputs, such as groups of features
        return True
    if not isinstance(y, torch.Tensor) or y.shape != expected.shape:
        return True
    return weight.device.type != "meta" and not torch.allclose(y, expected, rtol=1e-2, atol=1e-2)


@contextmanager
def _listening(hf: HF) -> Iterator[set[int]]:
    """Collect the ids of linear layers whose weight is read while they are not being called."""
    read: set[int] = set()
    inside: set[int] = set()
    find = nn.Module.__getattr__
    hooks = []
    for module in hf.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda layer, _: inside.add(id(layer))))
            hooks.append(module.register_forward_hook(lambda layer, *_: inside.discard(id(layer))))

    def listening(self: nn.Linear, name: str) -> Tensor | nn.Module:
        if name == "weight" and id(self) not in inside:
            read.add(id(self))
        return find(self, name)

    nn.Linear.__getattr__ = listening  # type: ignore[method-assign, assignment]
    try:
        yield read
    finally:
        del nn.Linear.__getattr__
        for hook in hooks:
            hook.remove()


@contextmanager
def _mode(hf: HF, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in hf.modules()]
    hf.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before
