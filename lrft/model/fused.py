"""Normalization, gating and rotation of a model as single nodes, in the modules whose own code computes just that.

Recognised by what a module holds and proven by trial, bit for bit: no family is named. The modules stay what they are,
of a subclass of their class, so that copies, hooks and checks of their type work as before.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lrft.model import liger
from lrft.model.hf import HF
from lrft.model.mixed_gate import Forward, MixedGate
from lrft.ops.elementwise import gated, rms_norm, rotated
from lrft.registry.errors import RecipeError

Norm = Callable[[Tensor, Tensor, float, bool], Tensor]
Gated = Callable[[Tensor, Tensor], Tensor]
Rotation = Callable[..., tuple[Tensor, Tensor]]
ROTATION = "apply_rotary_pos_emb"  # what every attention of transformers calls it
TOKENS = 3  # of a trial


@torch.no_grad()
def fuse(hf: HF, with_liger: bool = False) -> dict[str, int]:
    """Let every module whose code is one of the known forms compute it in one node.

    Args:
        with_liger: norms and gates by Liger's kernels, where a trial gives the module's values but for rounding.

    Returns:
        How many `norms`, `gates` and `rotations` were recognised.

    Raises:
        RecipeError: Liger's kernels compute something else.
    """
    counts = {"norms": 0, "gates": 0, "rotations": 0}
    like = hf.get_input_embeddings().weight
    finders: list[tuple[str, _Finder]] = [
        ("norms", _Norm(liger.norm if with_liger else rms_norm)),
        ("gates", _Gate(like, liger.gate if with_liger else gated)),
        ("gates", MixedGate(like)),
        ("rotations", _Turn()),
    ]
    proven: dict[object, type[nn.Module] | None] = {}
    with torch.random.fork_rng(devices=[]):
        for module in list(hf.modules()):
            for name, finder in finders:
                key = finder.key(module)
                if key is None:
                    continue
                if key not in proven:
                    proven[key] = _fused(finder, module)
                if (fused := proven[key]) is not None:
                    module.__class__ = fused
                    counts[name] += 1
    return counts


class _Finder(Protocol):
    """One of the known forms."""

    def key(self, module: nn.Module) -> object:
        """What modules of one form share; None for one that is not of it."""

    def forward(self, module: nn.Module, mode: bool) -> Forward | None:
        """The forward pass in one node, where a trial in training mode or not gives the module's own values."""


def _fused(finder: _Finder, module: nn.Module) -> type[nn.Module] | None:
    """A class like the module's with a forward pass that was tried in both modes."""
    kind, training, forward = type(module), module.training, None
    try:
        for mode in (True, False):
            module.train(mode)
            forward = finder.forward(module, mode)
            if forward is None:
                return None
    except RecipeError:
        raise
    except Exception:  # whatever a model's own code raises at a trial: it is of another form
        return None
    finally:
        module.train(training)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**named, "forward": forward})


def _same(forward: Forward, module: nn.Module, x: Tensor) -> bool:
    """Whether both give the same bits, what they draw included."""
    results = []
    for function in (forward, type(module).forward):
        torch.manual_seed(0)
        results.append(function(module, x))
    return torch.equal(*results)


class _Norm:
    """A norm by the root mean square whose weight comes after rounding, before it, or before it as 1 + weight.

    Args:
        kernel: computes it.
    """

    def __init__(self, kernel: Norm = rms_norm) -> None:
        self.kernel = kernel

    def key(self, module: nn.Module) -> object:
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim != 1 or len(module._parameters) > 1 or module._modules:
            return None
        return None if _eps(module) is None else (type(module), weight.dtype, weight.shape)

    def forward(self, module: nn.Module, mode: bool) -> Forward | None:
        weight = module.get_parameter("weight")
        x = torch.randn(1, TOKENS, len(weight), device=weight.device)
        tries = [(x * scale).to(weight.dtype) for scale in (1.0, 1e-3)]  # the second tells how eps is added
        for offset, first in ((None, False), (0.0, True), (1.0, True)):
            own = _norm_forward(type(module), offset, first, rms_norm)
            if all(_same(own, module, one) for one in tries):
                if self.kernel is rms_norm:
                    return own
                return liger.taken(
                    own, _norm_forward(type(module), offset, first, self.kernel), module, tries[0]
                )
        return None


def _eps(module: nn.Module) -> float | None:
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps", "epsilon")]
    return next((eps for eps in found if isinstance(eps, float)), None)


def _norm_forward(kind: type[nn.Module], offset: float | None, scale_first: bool, kernel: Norm) -> Forward:
    def forward(self: nn.Module, x: Tensor, *gates: object, **named: object) -> Tensor:
        weight, eps = self._parameters["weight"], _eps(self)  # which an adapter may stand in for
        assert weight is not None, "a norm without a weight is of another form"
        # In a trial there are no gradients: a weight that trains now may be frozen later.
        trains = torch.is_grad_enabled() and isinstance(weight, nn.Parameter) and weight.requires_grad
        if trains or gates or named or weight.dtype != x.dtype or eps is None:
            y: Tensor = kind.forward(self, x, *gates, **named)
            return y
        return kernel(x, weight if offset is None else weight.float() + offset, eps, scale_first)

    return forward


class _Gate:
    """A feed-forward block that gates by SiLU, its code naming its four parts and nothing else.

    Args:
        like: a tensor of the precision and on the device of what goes in.
        kernel: computes silu(gate) * up.
    """

    PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")

    def __init__(self, like: Tensor, kernel: Gated = gated) -> None:
        self.like, self.kernel = like, kernel

    def key(self, module: nn.Module) -> object:
        if any(module._modules.get(name) is None for name in self.PARTS):
            return None
        code = getattr(type(module).forward, "__code__", None)
        if code is None or not set(code.co_names) <= set(self.PARTS) or code.co_argcount != 2:
            return None  # with more than x, what is tried is not all that it can do
        return type(module), type(module.get_submodule("act_fn"))

    def forward(self, module: nn.Module, mode: bool) -> Forward | None:
        gate = module.get_submodule("gate_proj")
        linear: Any = getattr(gate, "base", gate)
        x = torch.randn(1, TOKENS, linear.in_features, device=self.like.device).to(self.like.dtype)
        own = _gate_forward(gated)
        if not _same(own, module, x):
            return None
        return own if self.kernel is gated else liger.taken(own, _gate_forward(self.kernel), module, x)


@cache
def _gate_forward(kernel: Gated) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in ("gate_proj", "up_proj", "down_proj"))
        y: Tensor = down(kernel(gate(x), up(x)))
        return y

    return forward


class _Turn:
    """An attention whose code rotates queries and keys by halves: the same code, finding another function."""

    def key(self, module: nn.Module) -> object:
        code = getattr(type(module).forward, "__code__", None)
        kind: object = type(module)
        return kind if ROTATION in getattr(code, "co_names", ()) else None

    def forward(self, module: nn.Module, mode: bool) -> Forward | None:
        own = type(module).forward
        assert isinstance(own, types.FunctionType)
        faster = _rotation(own.__globals__[ROTATION])
        if faster is None:
            return None
        names = {**own.__globals__, ROTATION: faster}
        copy = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
        copy.__kwdefaults__, copy.__annotations__ = own.__kwdefaults__, own.__annotations__
        return copy


@cache
def _rotation(own: Rotation) -> Rotation | None:
    """The rotation of queries and keys by halves, where `own` is that."""

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if unsqueeze_dim != 1 or not q.dtype == k.dtype == cos.dtype or cos.shape[-1] != q.shape[-1]:
            return own(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotated(q, cos, sin), rotated(k, cos, sin)

    for dtype in (torch.float32, torch.bfloat16):
        q, k = (torch.randn(2, heads, TOKENS, 8).to(dtype) for heads in (4, 2))
        cos, sin = (torch.randn(2, TOKENS, 8).to(dtype) for _ in range(2))
        if not all(map(torch.equal, rotate(q, k, cos, sin), own(q, k, cos, sin))):
            return None
    return rotate
