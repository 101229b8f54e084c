"""Layers that are mixtures of experts, as `lrft.model.skeleton` runs them: every expert is given as many tokens.

What they keep is an estimate where the router does not spread its tokens evenly: the rows of all experts together are
as many, but single experts are given more of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.model.skeleton_families import Family, count_experts, shared_width
from lrft.model.skeleton_parts import Config, FeedForward, Linear
from lrft.ops.by_expert import ByExpert
from lrft.ops.elementwise import gated
from lrft.ops.linalg import Context


def is_mixed(config: Config, family: Family, index: int) -> bool:
    """Whether the layer of that number is a mixture: some are not, the first ones or those that are named."""
    if family.experts is None:
        return False
    dense, every = getattr(config, "mlp_only_layers", None) or (), getattr(config, "decoder_sparse_step", 1)
    first = getattr(config, "first_k_dense_replace", None) or 0
    return index not in dense and (index + 1) % every == 0 and index >= first


class Mixture(nn.Module):
    """A router, the experts, and what every token goes through beside them."""

    def __init__(self, config: Config, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        experts = family.experts
        assert experts is not None, "asked before"
        self.kind, count = experts, count_experts(vars(config))
        setattr(self, experts.router, Router(config, family, dtype, count))
        make = TurnedExperts if experts.turned else StackedExperts
        self.experts = make(count, config.hidden_size, getattr(config, experts.width), dtype)
        if experts.shared:
            setattr(self, experts.shared, FeedForward(config, family, dtype, shared_width(vars(config))))
        if experts.gated:
            self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, hidden) -> (B, L, hidden)."""
        rows = x.flatten(0, -2)
        weights, chosen = self.get_submodule(self.kind.router)(rows)
        y: Tensor = self.experts(rows, chosen, weights)
        if self.kind.shared:
            beside = self.get_submodule(self.kind.shared)(rows if self.kind.flat else x).view_as(rows)
            y = y + (torch.sigmoid(self.shared_expert_gate(rows)) * beside if self.kind.gated else beside)
        return y.view_as(x)


class Router(nn.Module):
    """Which experts a token goes to, and what each of them counts."""

    def __init__(self, config: Config, family: Family, dtype: torch.dtype, count: int) -> None:
        super().__init__()
        assert family.experts is not None, "asked before"
        self.wide, self.copies, self.after = (
            family.experts.wide,
            config.num_experts_per_tok,
            family.experts.turned,
        )
        normed = family.experts.normed
        self.normed = getattr(config, "norm_topk_prob", False) if normed is None else normed
        self.weight = _frozen(count, config.hidden_size, dtype=dtype)
        self.bias = _frozen(count, dtype=dtype) if family.experts.turned else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, hidden) -> weights and numbers of experts, (tokens, k) both."""
        scores = F.linear(x, self.weight, self.bias)
        if self.after:
            scores, chosen = scores.topk(self.copies, dim=-1)
            return torch.softmax(scores, dim=-1), chosen
        scores, chosen = torch.softmax(scores, dim=-1, dtype=torch.float32).topk(self.copies, dim=-1)
        if self.normed:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return (scores if self.wide else scores.to(x.dtype)), chosen


class StackedExperts(nn.Module):
    """Experts as transformers holds them, in tensors of three dimensions, which `lrft.model.experts` takes apart."""

    has_gate, has_bias, is_transposed, has_post_expert_norm = True, False, False, False

    def __init__(self, count: int, hidden: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_experts = count
        self.gate_up_proj = _frozen(count, 2 * inner, hidden, dtype=dtype)
        self.down_proj = _frozen(count, hidden, inner, dtype=dtype)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(tokens, hidden), the experts (tokens, k) of each, and their weights -> (tokens, hidden)."""
        by = ByExpert.of(chosen, self.num_experts)
        inner = self._gate_whole(self._through(by.spread(x), "gate_up_proj"))
        y = self._through(inner, "down_proj") * weights.reshape(-1, 1).index_select(0, by.order)
        return by.gathered(y).to(x.dtype)

    def _through(self, x: Tensor, name: str) -> Tensor:
        width = self.get_parameter(name).shape[1 if not self.is_transposed else 2]
        y: Tensor = _Products.apply(x, self.get_parameter(name), width)  # type: ignore[no-untyped-call]
        bias = self._parameters.get(f"{name}_bias")
        return y if bias is None else y + bias[:1]

    def _apply_gate(self, first: Tensor) -> Tensor:
        """Of experts that were taken apart, whose gate is one node."""
        return gated(*first.chunk(2, dim=-1))

    def _gate_whole(self, first: Tensor) -> Tensor:
        gate, up = first.chunk(2, dim=-1)
        return F.silu(gate) * up


class TurnedExperts(StackedExperts):
    """Matrices stored (in, out), with biases; gate and up interleaved, and bounded."""

    has_bias, is_transposed = True, True

    def __init__(self, count: int, hidden: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__(count, hidden, inner, dtype)
        self.gate_up_proj = _frozen(count, hidden, 2 * inner, dtype=dtype)
        self.gate_up_proj_bias = _frozen(count, 2 * inner, dtype=dtype)
        self.down_proj = _frozen(count, inner, hidden, dtype=dtype)
        self.down_proj_bias = _frozen(count, hidden, dtype=dtype)

    def _apply_gate(self, first: Tensor) -> Tensor:
        gate, up = first[..., ::2].clamp(max=7.0), first[..., 1::2].clamp(min=-7.0, max=7.0)
        return (up + 1) * (gate * torch.sigmoid(gate * 1.7))

    def _gate_whole(self, first: Tensor) -> Tensor:
        return self._apply_gate(first)


class _Products(torch.autograd.Function):
    """The rows of every expert times its matrix, in one product: shapes alone."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(weight, *([x] if ctx.needs_input_grad[1] else []))
        return x.new_empty(len(x), width)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, dy = ctx.saved_tensors[0], grads[0]
        into = weight.numel() // len(weight) // dy.shape[1]
        dx = dy.new_empty(len(dy), into) if ctx.needs_input_grad[0] else None
        return dx, torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def _frozen(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
