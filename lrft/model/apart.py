"""What a mixture becomes whose experts were taken apart: a child for every expert, and how tokens go through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.grouped import Grouped
from lrft.ops.by_expert import ByExpert

DOWN = "down_proj"


class Apart(nn.Module):
    """What a class of experts becomes: the tensors gone, a child for every expert in their place.

    The tokens of each expert go through its layers together, and experts that no token chose are passed over.

    Attributes:
        by: which token goes where, while the layers are called.
        groups: the matrices whose products may be one for all experts, by name.
    """

    by: ByExpert | None
    groups: dict[str, Grouped]

    num_experts: int
    has_gate: bool
    is_transposed: bool
    has_post_expert_norm: bool

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, d), the experts (tokens, k) of each, and their weights -> (tokens, d)."""
        y: Tensor = self.mix(hidden_states, top_k_index, top_k_weights, self.inner)
        return y

    def mix(
        self,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
        inner: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The same, with another function between the two matrices of an expert than `inner`."""
        by = self.by = ByExpert.of(top_k_index, self.num_experts)
        first = self._through(first_name(self), by.spread(hidden_states), by)
        y = self._through(DOWN, inner(first), by)
        self.by = None
        if self.has_post_expert_norm:
            y = self.get_submodule("post_expert_norm")(y)
        weights = top_k_weights.reshape(-1, 1).index_select(0, by.order)
        return by.gathered(y * weights).to(hidden_states.dtype)

    def inner(self, first: Tensor) -> Tensor:
        """What the model's own code has between the two matrices."""
        own: Any = self._apply_gate if self.has_gate else self.act_fn
        y: Tensor = own(first)
        return y

    def _through(self, name: str, x: Tensor, by: ByExpert) -> Tensor:
        """The rows of every expert through its layer called `name`: in one product, or one expert after another."""
        group = self.groups.get(name)
        if group is not None and (y := group.product(x, by)) is not None:
            return y
        layers = layers_of(self, name)
        return torch.cat(
            [layers[number](rows) for number, rows in enumerate(x.split(by.counts)) if len(rows)]
        )


def layers_of(module: Any, name: str) -> list[nn.Module]:
    """The layers called `name` of all experts, in their order."""
    return [module.get_submodule(f"{number}.{name}") for number in range(module.num_experts)]


def first_name(module: nn.Module) -> str:
    """What the matrix is called that the hidden states of an expert meet."""
    return "gate_up_proj" if module.has_gate else "up_proj"
