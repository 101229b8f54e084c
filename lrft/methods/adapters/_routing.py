"""Routing tokens to experts: probabilities, the choice of k, and the balance losses over real tokens.

Probabilities and losses are float32 whatever the activations are. A balance loss is the Switch form
E sum_e f_e p_e of a micro-batch: f_e the share of token slots sent to expert e (sum 1), p_e its mean probability. It is
1 where both are uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.adapter import Shared
from lrft.core.context import current_batch, is_first_pass, real_tokens
from lrft.ops.linalg import Context


def route(x: Tensor, router: Tensor) -> Tensor:
    """Softmax of the router's logits, (..., in) and (E, in) -> (..., E) float32."""
    return torch.softmax(logits_of(x, router), dim=-1)


def logits_of(x: Tensor, router: Tensor) -> Tensor:
    """Logits x R^T in float32, (..., in) and (E, in) -> (..., E); x is kept for the backward pass as it is."""
    logits: Tensor = _Logits.apply(x, router)  # type: ignore[no-untyped-call]
    return logits


def choose(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weights (..., k) of the k likeliest experts, made to sum to 1, and which experts they are (..., k)."""
    kept, chosen = torch.topk(probabilities, k, dim=-1)
    return kept / kept.sum(dim=-1, keepdim=True), chosen


def spread(weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """Weights (..., k) of the chosen experts as weights of all, 0 where not chosen: (..., E)."""
    return weights.new_zeros(*weights.shape[:-1], experts).scatter(-1, chosen, weights)


class _Logits(torch.autograd.Function):
    """x W^T in float32 that keeps x as it is: a float32 copy would be twice a half-precision activation."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, router: Tensor) -> Tensor:
        ctx.save_for_backward(x, router)
        return F.linear(x.float(), router.float())

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, router = ctx.saved_tensors
        (dy,) = grads
        dx = (dy @ router.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        flat = dy.reshape(-1, dy.shape[-1])
        dw = flat.mT @ x.reshape(-1, x.shape[-1]).float() if ctx.needs_input_grad[1] else None
        return dx, None if dw is None else dw.to(router.dtype)


@dataclass(frozen=True)
class Load:
    """What a router did with the real tokens of one forward pass.

    Attributes:
        slots: (E,) token slots sent to each expert.
        probability: (E,) sum of probabilities over the tokens, with a graph.
        tokens: real tokens, a scalar tensor.
    """

    slots: Tensor
    probability: Tensor
    tokens: Tensor


def measure(x: Tensor, probabilities: Tensor, chosen: Tensor) -> Load:
    """The load of one pass, padding left out.

    Args:
        x: (..., in), the router's input, by whose shape the current micro-batch is recognised.
        probabilities: (..., E) with a graph, and `chosen`: (..., k); (..., n, E) and (..., n, k) where a token is
            sent n times, each of which counts as a token.
    """
    experts = probabilities.shape[-1]
    real = real_tokens(x)
    counted = torch.ones_like(probabilities[..., 0])
    if real is not None:
        counted = counted * real.view(*real.shape, *[1] * (counted.ndim - real.ndim))
    counted = counted.reshape(-1, 1)
    hits = F.one_hot(chosen, experts).sum(-2).reshape(-1, experts)
    return Load((hits * counted).sum(0), (probabilities.reshape(-1, experts) * counted).sum(0), counted.sum())


def switch_balance(loads: Sequence[Load]) -> Tensor:
    """E sum_e f_e p_e over the tokens of all `loads` together; 1 at its uniform value."""
    slots = torch.stack([load.slots for load in loads]).sum(0)
    tokens = torch.stack([load.tokens for load in loads]).sum()
    probability = torch.stack([load.probability for load in loads]).sum(0) / tokens
    return len(slots) * (slots / slots.sum() * probability).sum()


def document_sums(values: Tensor, x: Tensor) -> Tensor:
    """Sum of `values` (..., E) over each document, (documents, E): padding excluded, packed documents apart.

    Without a current micro-batch of that shape the rows of x (B, L, in) are the documents.
    """
    batch, experts = current_batch(), values.shape[-1]
    if batch is None or batch.input_ids.numel() != x.shape[:-1].numel():
        return (values if values.ndim == 3 else values.reshape(1, -1, experts)).sum(1)
    length = batch.input_ids.shape[1]
    edges = [(row * length + start, row * length + end) for row, start, end in batch.documents]
    bounds = torch.tensor(edges, dtype=torch.int64).to(values.device, non_blocking=True)
    place = torch.arange(batch.input_ids.numel(), device=values.device)
    inside = (place >= bounds[:, :1]) & (place < bounds[:, 1:])
    return inside.to(values.dtype) @ values.reshape(-1, experts)


def squared_variation(values: Tensor) -> Tensor:
    """Unbiased variance over squared mean of all entries, a scalar; 0 for a single entry."""
    if values.numel() == 1:
        return values.new_zeros(())
    return values.float().var() / (values.float().mean() ** 2 + 1e-10)


class Routing:
    """What a router's last training pass left for the penalty, and the routers whose penalty is one.

    Attributes:
        group: the routings that are balanced together; the first speaks for all.
        watched: whether what the experts get is counted, since `take_load` was asked for.
        slots: (E,) what each got since then.
    """

    def __init__(self, group: list[Routing] | None = None) -> None:
        self.group = [] if group is None else group
        self.group.append(self)
        self.slots: Tensor | None = None
        self.watched = False
        self._left: object = None

    def leave(self, what: Load | Tensor) -> None:
        """Keep what the penalty needs of this pass; a pass recomputed inside a backward pass leaves nothing.

        Under activation checkpointing the first pass is the one whose graph reaches the loss, and what the second
        left would only keep its activations alive.
        """
        if torch._C._current_graph_task_id() == -1:
            self._left = what
        if self.watched and is_first_pass():
            got = what.slots if isinstance(what, Load) else what.detach().sum(0)
            self.slots = got if self.slots is None else self.slots + got

    def take(self) -> list[Any]:
        """What the group left, forgotten here; empty for all but the group's first, and where nothing was left."""
        if self.group[0] is not self:
            return []
        found = [member._left for member in self.group if member._left is not None]
        for member in self.group:
            member._left = None
        return found

    def take_load(self, name: str = "") -> dict[str, Tensor]:
        """What the experts got since the last call, as `Routed.take_load`, under the router's name."""
        found, self.slots, self.watched = self.slots, None, True
        return {} if found is None else {name: found}

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """A copy without what was left: tensors with a graph cannot be copied."""
        new = Routing.__new__(Routing)
        memo[id(self)] = new
        known = memo.get(id(self.group))
        if known is None:
            known = memo[id(self.group)] = []
            known.extend(new if member is self else member.__deepcopy__(memo) for member in self.group)
        new.group, new._left = known, None
        new.slots, new.watched = self.slots, self.watched
        return new


class Balance(Shared):
    """Which routers are balanced together. Holds no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, list[Routing]] = {}

    def join(self, group: str) -> Routing:
        """A routing that is a new member of `group`."""
        return Routing(self.groups.setdefault(group, []))
