"""`Optimizer`: what the loop, the checkpoints and the counts ask of an optimizer beyond torch's own interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrft.core.params import ParamInfo
from lrft.registry.config import OptimizerConfig


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that is built of parameters with roles, and says how it wants to be used.

    A method derives from this, alone or before the class of torch that it is: `class AdamW(Optimizer,
    torch.optim.AdamW)`. Its state survives a checkpoint: `state_dict` holds tensors and plain values, and a step after
    `load_state_dict` is the step that would have followed, to the bit. State is counted beforehand by a step on tensors
    without storage, of the meta device.

    Class attributes:
        provides, requires: traits (`lrft.registry.traits`).
        calls_closure: `step(closure)` computes losses itself, without gradients, and returns the one to report; all
            others are stepped once the gradients are there.
        consumes_gradients: parameters are stepped within the backward pass and their gradients freed; there is no
            global norm to clip by, only `take_norm`.
        matrix_wise: it moves single matrices in a way of its own, and tensors that hold several as it does vectors.
        lighter: the method that does nearly the same with less state, or None.
        shared_state: names of state tensors that all parameters share, which are counted for none.
        replays: checkpoints hold what its steps did (`record` of its `state_dict`) in the place of what trains, which
            `replay` gives back to the bit.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[OptimizerConfig]] = OptimizerConfig
    calls_closure: ClassVar[bool] = False
    consumes_gradients: ClassVar[bool] = False
    matrix_wise: ClassVar[bool] = False
    lighter: ClassVar[str | None] = None
    shared_state: tuple[str, ...] = ()
    replays: bool = False

    @classmethod
    def build(cls, params: list[ParamInfo], config: Any) -> torch.optim.Optimizer:
        """The optimizer over these parameters, with the settings of a recipe.

        Raises:
            ValueError: it cannot take them; the message says which and what would work.
        """
        raise NotImplementedError(f"{cls.__name__} declares no way to be built")

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Any) -> int | None:
        """Bytes of state of one parameter; None where only a step tells. Tests compare it with a step."""
        return None

    def lead(self) -> None:
        """Before a step's loss: move the parameters to where its gradients are to be taken, where that is elsewhere.

        `step` brings them back, so that between two steps they are what is scored and saved.
        """

    def rejoin(self) -> None:
        """Bring the parameters back without a step, where one is left out after `lead`."""

    def replay(self, record: Mapping[str, Tensor]) -> None:
        """From parameters as they were before step 1 to those after the last step of a record, without a loss."""
        raise NotImplementedError(f"{type(self).__name__} declares no record of its steps")

    def take_norm(self) -> Tensor | None:
        """The global L2 norm of the gradients consumed since the last call, 0-d; None where there were none."""
        return None

    def adjusted_gradients(self, B: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the gradients of a pair A (r, in), B (out, r) are replaced by before the step; None where they stay."""
        return None


def contract_of(optimizer: torch.optim.Optimizer) -> Optimizer | type[Optimizer]:
    """The optimizer as one of ours; of a plain one of torch's, the defaults."""
    return optimizer if isinstance(optimizer, Optimizer) else Optimizer


def lead(optimizer: torch.optim.Optimizer) -> None:
    """`Optimizer.lead`, of one of ours."""
    if isinstance(optimizer, Optimizer):
        optimizer.lead()


def rejoin(optimizer: torch.optim.Optimizer) -> None:
    """`Optimizer.rejoin`, of one of ours."""
    if isinstance(optimizer, Optimizer):
        optimizer.rejoin()


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What `step(closure)` returns, as torch's own optimizers do: the loss formed anew, with gradients, where asked."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
