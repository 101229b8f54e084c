"""That everything trains, looked at once the first steps are done."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.optimizer import contract_of
from lrft.core.run import Run
from lrft.registry.errors import NumericalError


class GradientCheck(Callback):
    """After two steps, or as many as the run's methods say, every trainable tensor has had a gradient that is not zero.

    Otherwise the run stops and says which had none.
    """

    def __init__(self) -> None:
        self.reached: dict[str, Tensor] = {}
        self.steps = 2

    def start(self, run: Run) -> None:
        """Where gradients are freed in the backward pass, look at them there."""
        self.steps = max(callback.gradients_by(run) for callback in run.callbacks)
        if run.step < self.steps and contract_of(run.optimizer).consumes_gradients:
            for info in run.parameters:
                info.param.register_hook(partial(self._look, run, info.name))

    def _look(self, run: Run, name: str, grad: Tensor) -> None:
        if run.step < self.steps:
            hit = grad.count_nonzero() > 0
            self.reached[name] = hit | self.reached.get(name, torch.zeros_like(hit))

    def after_backward(self, run: Run) -> None:
        if run.step >= self.steps:
            return
        for info in run.parameters:
            if info.param.grad is not None:
                hit = info.param.grad.count_nonzero() > 0
                self.reached[info.name] = hit | self.reached.get(info.name, torch.zeros_like(hit))

    def after_step(self, run: Run) -> None:
        if run.step != self.steps or not self.reached:
            return
        names = list(self.reached)
        alive = torch.stack([self.reached[name] for name in names]).tolist()  # one wait for all tensors
        # Some may rest by choice.
        trains = {info.name for info in run.parameters if info.param.requires_grad and not info.sparse}
        dead = [i.name for i in run.parameters if i.name in trains - self.reached.keys()]
        dead += [name for name, hit in zip(names, alive, strict=True) if not hit and name in trains]
        if run.metrics.get("loss") == 0 and run.metrics.get(
            "tokens", 1
        ):  # a private step may have drawn no row
            raise NumericalError(
                f"step {run.step}: the loss is exactly 0, so nothing is learnt; check data.format"
            )
        if dead:
            raise NumericalError(
                f"after step {self.steps} {len(dead)} of {len(run.parameters)} trainable tensors have had no "
                f"gradient, {dead[0]} first; nothing there would be learnt"
            )

    def state_dict(self) -> StateDict:
        return {"reached": self.reached}

    def load_state_dict(self, state: StateDict) -> None:
        self.reached = state["reached"]
