"""GreenTrainer: the tensors that matter most within a budget of backward operations train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.notes import say
from lrft.core.optimizer import Optimizer, contract_of
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select._backward_costs import Costs, choose, measure_costs
from lrft.methods.select._layers import Selection, layers, train_only
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, Iterator, Problem, RecipeView, Sequence
from lrft.registry.errors import NumericalError, RecipeError

LEAST = 0.05  # of the backward pass, where the share of the whole leaves none


@SELECTORS.register
class GreenTrainer(Selection):
    """Adaptive backpropagation: the tensors worth most whose backward pass fits into a budget of operations train.

        before steps 0, K, 2 K, ...:  w1 = w0 + dw by one step of the optimizer, g1 = dL/dw at w1, back to w0
                                      I_k = -sum(g1_k dw_k) / max |I|
                                      M = argmax sum of I_k  with  reach(M) + sum of w_k <= b T,  k in M
                                      b = s + (s - 1) F / T, or 0.05 where that is not above 0

    with K = `every`, s = `share` of the operations of full training; F and T are those of a forward and of a full
    backward pass, w_k those of the gradient of tensor k, reach those of passing the gradient down to the deepest tensor
    of M. Tensors stand in the order in which the backward pass reaches them. The maximum is found by a dynamic
    programme over (tensor, cost), in `units` of the budget. Where 0.05 is taken, that is said.

    Shapes: those of the model. Changes nothing at step 0.
    Trains: M, whole tensors; the rest has no gradient and keeps its values to the last bit. Between two steps all that
    `trainable` names requires gradients again, so it is saved whole.
    State: with AdamW 8 bytes per number of M. A selection holds a gradient, a copy and the moments of everything for
    the time of two forward and backward passes over the step's own rows: the peak is that of full training and more.
    The names of M are kept in a checkpoint.
    Source: Huang et al., "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation", ICLR
    2024, arXiv 2309.13192; importance, budget and its least value as in the authors' code.
    Departures: after a selection weights, moments and random draws are what they were (in the code two steps of the
    optimizer stay in its moments); a tensor frozen again loses its moments; K counts steps, not epochs. Costs of
    tensors are not rounded to the units: in each unit the best set is kept with its exact cost. Settled here: a cost is
    two operations for every number of a matrix and token, one for those of a vector, experts as if every token went
    through each; products of attention without weights are left out.
    """

    aliases = {
        "adaptive_backpropagation adaptive_backprop": "adapter: null\ntrainable: full\nselect: greentrainer",
    }
    requires = {"base_weights", "first_order"}

    config: Config

    class Config(Selection.Config):
        share: float = Field(0.4, gt=0, le=1, description="of the operations of full training")
        every: int = Field(500, gt=0, description="optimizer steps between two selections")
        units: int = Field(
            1000, gt=0, le=100_000, description="that the budget is divided into for the search"
        )

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first selection."""
            self.refuse_one(self.every, total_steps, "selection")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Where a probing step is none, or what trains is no tensor of the model."""
            if recipe["adapter"] is not None:
                yield Problem(
                    "adapter", "is no tensor of the model to choose (select: greentrainer); write null"
                )
            if recipe["model.dtype"] == "float16":
                yield Problem(
                    "model.dtype",
                    "overflows in a probing step (select: greentrainer); write bfloat16 or float32",
                )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.chosen: set[str] = set()
        self.told = False

    def start(self, run: Run) -> None:
        layers(run)

    def before_step(self, run: Run) -> None:
        if run.step % self.config.every == 0:
            order, worth = importances(run)
            costs = measure_costs(run, order)
            chosen = self.affordable(costs, worth)
            self.chosen = {info.name for info, one in zip(order, chosen, strict=True) if one}
            run.reset_optimizer([info.param for info in run.parameters if info.name not in self.chosen])
            share = (costs.of(chosen) + costs.forward) / (costs.backward + costs.forward)
            run.record(selected_tensors=len(self.chosen), share_of_operations=round(share, 4))
        train_only(run, [info.param for info in run.parameters if info.name in self.chosen])

    def affordable(self, costs: Costs, worth: list[float]) -> list[bool]:
        """Which tensors train.

        Raises:
            RecipeError: none can.
        """
        share, ratio = self.config.share, costs.forward / costs.backward
        budget = share + (share - 1) * ratio
        if budget <= 0:
            budget = LEAST
            if not self.told:
                self.told = True
                least = (LEAST + ratio) / (1 + ratio)
                say(
                    f"select: {share:g} of the operations leaves no backward pass; {least:.3f} is taken instead"
                )
        chosen = choose(costs, worth, budget * costs.backward, self.config.units)
        if not any(chosen):
            raise RecipeError(
                f"{share:g} is too small for any tensor that lowers the loss; write more", "select.share"
            )
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": sorted(self.chosen), "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chosen, self.told = set(state["chosen"]), state["told"]


def importances(run: Run) -> tuple[list[ParamInfo], list[float]]:
    """The parameters in the order in which a backward pass reaches them, and what a step of each is worth.

    Raises:
        NumericalError: the probing step leaves no finite importance, or none but zeros.
    """
    assert run.closure is not None, "a selection is made before a step"
    before = {info.param: info.param.detach().clone() for info in run.parameters}
    state = copy.deepcopy(run.optimizer.state_dict())
    order: list[ParamInfo] = []
    found = {info.param: torch.zeros((), device=info.param.device) for info in run.parameters}

    def weigh(info: ParamInfo, gradient: Tensor) -> None:
        moved = info.param.detach().float() - before[info.param].float()
        found[info.param] -= (gradient.float() * moved).sum()

    devices = sorted({info.param.device for info in run.parameters if info.param.is_cuda}, key=str)
    with torch.random.fork_rng(devices=devices):
        _hooked(run, lambda info, gradient: order.append(info))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        _hooked(run, weigh)
        run.optimizer.zero_grad(set_to_none=True)
    _put_back(run, before, state)
    places = {info: place for place, info in reversed(list(enumerate(order)))}
    late = len(run.parameters)  # what these rows did not reach
    sums = [torch.tensor([places.get(i, late), found[i.param]], dtype=torch.float32) for i in run.parameters]
    seen = run.summed(torch.stack(sums).to(run.device))
    largest = seen[:, 1].abs().max()
    if not seen.isfinite().all() or largest == 0:
        message = (
            f"step {run.step + 1}: what select: greentrainer tries changes no loss, or is no finite number"
        )
        raise NumericalError(f"{message}; change optimizer.lr")
    reached = seen[:, 0].argsort(stable=True).tolist()
    worth = (seen[:, 1] / largest).tolist()
    return [run.parameters[index] for index in reached], [worth[index] for index in reached]


def _put_back(run: Run, weights: dict[nn.Parameter, Tensor], state: dict[str, Any]) -> None:
    """Weights and optimizer as they were before the two passes, which are no step."""
    contract = contract_of(run.optimizer)
    if isinstance(contract, Optimizer) and contract.consumes_gradients:
        contract.take_norm()
    run.reset_optimizer()
    run.optimizer.load_state_dict(state)
    with torch.no_grad():
        for param, value in weights.items():
            param.copy_(value)


def _hooked(run: Run, take: Callable[[ParamInfo, Tensor], None]) -> None:
    """Loss and gradients of the step, every gradient shown as it comes."""
    handles = [info.param.register_hook(lambda g, info=info: take(info, g)) for info in run.parameters]
    try:
        assert run.closure is not None
        run.closure()
    finally:
        for handle in handles:
            handle.remove()
