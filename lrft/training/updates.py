"""How an optimizer's updates reach the weights: together or parameter by parameter, in place, or through float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer, contract_of
from lrft.core.params import ParamInfo
from lrft.ops.rounding import stochastic_round
from lrft.training.held_states import HeldStates, State

Build = Callable[[list[ParamInfo]], torch.optim.Optimizer]


def build(
    make: Build, infos: list[ParamInfo], *, update: str, per_layer: bool, seed: int
) -> torch.optim.Optimizer:
    """The optimizer that `make` builds of parameters, stepped in the way the recipe asks for.

    Args:
        update: `in_place`, or `master` or `stochastic` for parameters in less than float32.
        per_layer: step each parameter as soon as its gradient is complete.
        seed: of stochastic rounding.

    Raises:
        ValueError: the optimizer computes its own losses, which float32 copies would not reach.
    """

    def one(part: list[ParamInfo]) -> torch.optim.Optimizer:
        coarse = any(info.param.dtype != torch.float32 for info in part)
        return make(part) if update == "in_place" or not coarse else Float32(make, part, update, seed)

    return PerLayer(one, infos) if per_layer else one(infos)


class Wrapper(Optimizer):
    """An optimizer around others: its groups are theirs, so a schedule moves the rates that count."""

    def __init__(
        self, infos: Sequence[ParamInfo], inner: torch.optim.Optimizer, groups: list[dict[str, Any]]
    ) -> None:
        super().__init__([{"params": [info.param for info in infos]}], {"lr": 0.0})
        self.param_groups = groups
        self.shared_state = contract_of(inner).shared_state
        self._trained = [info.param for info in infos]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters themselves; the groups may hold copies."""
        for param in self._trained:
            param.grad = None


class Float32(Wrapper):
    """Steps float32 copies of bfloat16 parameters and writes them back.

    master: the copies stay (4 more bytes a number), so updates too small for bfloat16 add up.
    stochastic: p <- the float32 result rounded up or down with the probability that makes it right on average; the
    copies live for one step. Either way a copy exists only once its parameter has had a gradient, and goes when
    the parameter's state is reset, so a selection of layers pays for the selected ones.
    """

    def __init__(self, make: Build, infos: list[ParamInfo], update: str, seed: int) -> None:
        self.infos, self.keep, self.seed, self.steps = infos, update == "master", seed, 0
        # A copy is a parameter without memory until it is needed; builders look at shapes and roles only. What is
        # float32 already is given to the optimizer itself.
        self.copies = [i.param if _exact(i.param) else nn.Parameter(_hollow(i.param)) for i in infos]
        self.alive: set[nn.Parameter] = set()  # copies that hold their parameter's values
        pairs = zip(infos, self.copies, strict=True)
        self.inner = make([replace(info, param=copy) for info, copy in pairs])
        if contract_of(self.inner).calls_closure:
            raise ValueError(
                "computes its own losses, which float32 copies would not reach; write update: in_place"
            )
        if "averaged" in contract_of(self.inner).provides:
            raise ValueError(
                "takes gradients ahead of the weights, where float32 copies would not follow; write update: in_place"
            )
        super().__init__(infos, self.inner, self.inner.param_groups)
        self.state = HeldStates(  # type: ignore[assignment]
            {info.param: (self, copy) for info, copy in zip(infos, self.copies, strict=True)}
        )

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of the inner optimizer on the copies of parameters that have a gradient."""
        self.step_some()
        self.steps += 1

    @torch.no_grad()
    def step_some(self) -> None:
        """A part of a step, as of parameters that are stepped one block after another."""
        pairs = zip(self.infos, self.copies, strict=True)
        active = [(i.param, c) for i, c in pairs if i.param is not c and i.param.grad is not None]
        for param, copy in active:
            if copy not in self.alive:
                copy.data = param.detach().float()
                self.alive.add(copy)
            assert param.grad is not None
            copy.grad = param.grad.float()
        self.inner.step()
        for index, (param, copy) in enumerate(active):
            param.copy_(copy if self.keep else self._rounded(copy, param.dtype, index))
            copy.grad = None
            if not self.keep:
                self._release(copy)

    def _rounded(self, values: Tensor, dtype: torch.dtype, index: int) -> Tensor:
        if dtype != torch.bfloat16 or values.is_meta:
            return values.to(dtype)
        generator = torch.Generator(values.device)
        generator.manual_seed((self.seed * 1_000_003 + self.steps) * 65_537 + index)
        return stochastic_round(values.detach(), generator)

    def drop(self, copy: nn.Parameter) -> None:
        """Forget a copy and the state of its parameter."""
        self.inner.state.pop(copy, None)
        self._release(copy)

    def _release(self, copy: nn.Parameter) -> None:
        if copy not in self.alive:
            return  # a parameter of float32 itself
        copy.data = _hollow(copy)
        self.alive.discard(copy)

    def held(self, copy: nn.Parameter) -> State:
        """The inner optimizer's state of one copy, and the copy itself where it is kept."""
        state = dict(self.inner.state.get(copy, {}))
        return {**state, "master": copy} if copy in self.alive else state

    def state_dict(self) -> StateDict:
        masters = {str(i): c.data for i, c in enumerate(self.copies) if c in self.alive}
        return {"inner": self.inner.state_dict(), "masters": masters, "steps": self.steps}

    def load_state_dict(self, state_dict: StateDict) -> None:
        for index, master in state_dict["masters"].items():
            copy = self.copies[int(index)]
            copy.data = master.to(self.infos[int(index)].param.device).clone()
            self.alive.add(copy)
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        self.steps = state_dict["steps"]


class PerLayer(Wrapper):
    """One optimizer a parameter, stepped when that parameter's gradient is complete, which is then freed.

    The largest gradient alive is that of one parameter. There is no global norm to clip by, and a step cannot be
    taken back when a gradient turns out not to be finite: the run then ends, with its last checkpoint intact.
    """

    consumes_gradients = True

    def __init__(self, make: Build, infos: list[ParamInfo]) -> None:
        self.infos = infos
        self.parts = [make([info]) for info in infos]
        super().__init__(infos, self.parts[0], [group for part in self.parts for group in part.param_groups])
        self.state = HeldStates({i.param: (self, i.param) for i in infos})  # type: ignore[assignment]
        self._index = {info.param: index for index, info in enumerate(infos)}
        self._square: Tensor | None = None
        for info, part in zip(infos, self.parts, strict=True):
            info.param.register_post_accumulate_grad_hook(self._hook(part))

    def _hook(self, part: torch.optim.Optimizer) -> Callable[[Tensor], None]:
        def step(param: Tensor) -> None:
            assert param.grad is not None
            square = param.grad.detach().float().square().sum()
            self._square = square if self._square is None else self._square + square
            part.step()
            param.grad = None

        return step

    def take_norm(self) -> Tensor | None:
        """The global L2 norm of the gradients since the last call, a 0-d tensor; None where there were none."""
        square, self._square = self._square, None
        return None if square is None else square.sqrt()

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Nothing: the backward pass has done it."""

    def drop(self, param: nn.Parameter) -> None:
        """Forget the state of one parameter."""
        self.parts[self._index[param]].state.pop(param, None)

    def held(self, param: nn.Parameter) -> State:
        """The state of one parameter."""
        return dict(self.parts[self._index[param]].state.get(param, {}))

    def state_dict(self) -> StateDict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: StateDict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _exact(param: Tensor) -> bool:
    return param.dtype == torch.float32


def _hollow(param: Tensor) -> Tensor:
    """A float32 tensor of the parameter's shape that holds one number."""
    return torch.zeros((), device=param.device).expand(param.shape)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors; scalars, and tables that all parameters share, are left out."""
    return sum(state_bytes_of(optimizer, param) for param in list(optimizer.state))


def state_bytes_of(optimizer: torch.optim.Optimizer, param: Tensor) -> int:
    """Those of one parameter; none where it has no state."""
    shared = contract_of(optimizer).shared_state
    return _tensor_bytes({k: v for k, v in optimizer.state.get(param, {}).items() if k not in shared})


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() if value.ndim else 0
    if isinstance(value, dict):
        return sum(_tensor_bytes(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(inner) for inner in value)
    return 0
