"""What a backward pass costs tensor by tensor, and which tensors are worth most within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.core.params import ParamInfo
from lrft.core.run import Run

PRODUCTS = (
    "matrix",
    "matrices",
    "head",
    "core",
    "lora_A",
    "lora_B",
)  # roles of what hidden states are multiplied with


@dataclass(frozen=True)
class Costs:
    """Operations a token, of tensors in the order in which a backward pass reaches them.

    Attributes:
        passing: to bring the gradient from the tensor before to this one.
        weight: of its own gradient.
        forward: of the forward pass.
    """

    passing: list[float]
    weight: list[float]
    forward: float

    @property
    def backward(self) -> float:
        """The backward pass in which all train."""
        return sum(self.passing) + sum(self.weight)

    def of(self, chosen: Sequence[bool]) -> float:
        """The backward pass in which these alone train."""
        deepest = max((place for place, one in enumerate(chosen) if one), default=-1)
        return sum(self.passing[: deepest + 1]) + sum(
            w for w, one in zip(self.weight, chosen, strict=True) if one
        )


def measure_costs(run: Run, order: list[ParamInfo]) -> Costs:
    """Costs of the run's parameters, which a backward pass has reached in this `order`.

    Two operations for every number of a matrix, or of the matrices of experts, and one for every number of a vector,
    for the gradient of the tensor and for passing one on; tensors of one module are reached together. What does not
    train is crossed in the order in which the model registers it. An embedding costs the row of the token; one that is
    also the head costs its product too.
    """
    roles = {info.param: info.role for info in run.parameters}
    owners, crossed, forward = _walk(run.model, roles)
    tied = not any(info.role == "head" for info in order)
    head = _head(run.model) if tied else 0.0
    shared = tied and any(info.role == "embedding" and _is_head(run.model, info.param) for info in order)
    passing, weight, waiting, before = [], [], head, None
    for info in order:
        owner = owners[info.param]
        first = owner is not before
        passing.append(waiting + crossed.pop(owner, 0.0) if first else 0.0)
        waiting = 0.0 if first else waiting
        before = owner
        weight.append(_weight_cost(info, shared))
        waiting += 0.0 if info.role == "embedding" else _products(info.param, info.role)
    return Costs(passing, weight, forward + head)


def _walk(
    model: nn.Module, roles: dict[nn.Parameter, str]
) -> tuple[dict[Tensor, nn.Module], dict[nn.Module, float], float]:
    """Module of each parameter that trains, what is crossed before it is reached, and the forward pass."""
    owners: dict[Tensor, nn.Module] = {}
    crossed: dict[nn.Module, float] = {}
    forward = frozen = 0.0
    for module in reversed(list(model.modules())):
        held = list(module.parameters(recurse=False))
        trained = [p for p in held if p in roles]
        for parameter in trained:
            owners[parameter] = module
            forward += 0.0 if roles[parameter] == "embedding" else _products(parameter, roles[parameter])
        if trained:
            crossed[module] = crossed.get(module, 0.0) + frozen
            frozen = 0.0
        if not isinstance(module, nn.Embedding) and not _is_head_module(model, module):
            rest = [
                p for p in held if p not in roles
            ]  # a weight whose bias alone trains is crossed behind it
            cost = float(sum(_products(p, "matrix" if p.ndim > 1 else "vector") for p in rest))
            if isinstance(module, FrozenLinear):
                cost += 2.0 * module.in_features * module.out_features
            frozen, forward = frozen + cost, forward + cost
    return owners, crossed, forward


def _products(parameter: Tensor, role: str) -> float:
    return float(parameter.numel() * (2 if role in PRODUCTS or parameter.ndim > 1 else 1))


def _weight_cost(info: ParamInfo, shared: bool) -> float:
    if info.role != "embedding":
        return _products(info.param, info.role)
    return float(info.param.shape[1] + (2 * info.param.numel() if shared else 0))


def _head_of(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "head", None)
    module: nn.Module | None = None if head is None else head.module
    return module


def _is_head_module(model: nn.Module, module: nn.Module) -> bool:
    return module is _head_of(model)


def _is_head(model: nn.Module, parameter: Tensor) -> bool:
    head = _head_of(model)
    return head is not None and any(p is parameter for p in head.parameters())


def _head(model: nn.Module) -> float:
    """To pass a gradient through a head that does not train as such."""
    head = _head_of(model)
    return 0.0 if head is None else 2.0 * sum(p.numel() for p in head.parameters() if p.ndim > 1)


def choose(costs: Costs, worth: Sequence[float], limit: float, units: int = 1000) -> list[bool]:
    """The tensors of most worth whose backward pass costs at most `limit`.

    A programme over (tensor, cost of weights in `units` of the limit): in each of the units the set of most worth is
    kept, with its exact cost, so that a choice is never over the limit.
    """
    kept = {0: (0.0, 0.0, 0)}  # unit -> worth, cost of the weights with a minus, the set as bits
    best, reached = kept[0], 0.0
    for place, value in enumerate(worth):
        reached += costs.passing[place]
        if reached > limit:
            break
        if value <= 0:
            continue
        for had, spent, chosen in list(kept.values()):
            total = costs.weight[place] - spent
            if reached + total > limit:
                continue
            one = (had + value, -total, chosen | 1 << place)
            unit = int(total / limit * units)
            kept[unit] = max(kept.get(unit, one), one)
            best = max(best, one)
    return [bool(best[2] >> place & 1) for place in range(len(worth))]
