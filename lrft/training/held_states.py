"""The states of parameters where the optimizer that a run sees holds none itself."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Protocol

from torch import nn

State = dict[str, object]
"""What an optimizer keeps for one parameter."""


class Holder(Protocol):
    """Who keeps the states of parameters, by the parameter or the copy that stands for it."""

    def held(self, param: nn.Parameter, /) -> State:
        """What is kept for the parameter, empty before its first step."""

    def drop(self, param: nn.Parameter, /) -> None:
        """Forget it."""


class HeldStates(MutableMapping[nn.Parameter, State]):
    """`optimizer.state` of a wrapper: a parameter's state, wherever it is held."""

    def __init__(self, holders: dict[nn.Parameter, tuple[Holder, nn.Parameter]]) -> None:
        self.holders = holders

    def __getitem__(self, param: nn.Parameter) -> State:
        holder, key = self.holders[param]
        found = holder.held(key)
        if not found:
            raise KeyError(param)
        return found

    def __setitem__(self, param: nn.Parameter, value: State) -> None:
        raise TypeError("the state of a wrapped optimizer is set by its own steps")

    def __delitem__(self, param: nn.Parameter) -> None:
        holder, key = self.holders[param]
        holder.drop(key)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return (param for param, (holder, key) in self.holders.items() if holder.held(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)
