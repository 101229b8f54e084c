"""`Adapter`: a change to one site, and everything a method author has to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter_class import AdapterClass
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.peft import PeftForm
from lrft.core.shared import Hosting, Shared
from lrft.ops.formed import Formed
from lrft.ops.formula import formula_linear
from lrft.ops.low_rank import Branch, branch_linear
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import NotMergeable

Factors = tuple[Tensor, Tensor]
"""A (k, in) and B (out, k) of a low-rank matrix B A, scaling included."""


class Adapter(AdapterClass, nn.Module):
    """A change to one frozen linear map; what it says of itself without a model is in `AdapterClass`.

    The one formula is `delta_weight`; the default forward and the merge both follow from it, so they cannot
    disagree. A subclass may override `forward` with a fast path, which a contract test compares with the formula.
    A change that does not depend on W is an `Additive`; one by a low-rank term is a `LowRank` and says its `branch`.

    Parameters are created in float32: they are the master weights the optimizer moves. The forward pass casts
    them to `compute_dtype` (or the input's dtype) at the point of use, so an update too small for bfloat16 is
    kept until it adds up.

    Class attributes:
        scaling: s of the low-rank term, alpha / rank or what the method makes of it.
    """

    compute_dtype: torch.dtype | None = None
    scaling: float = 1.0
    skipped: bool = False  # some micro-batches may pass it by, so that first steps may X

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site

    @classmethod
    def at(cls, config: Any, site: Site, shared: Shared | None = None) -> Adapter:
        """The adapter of one site; overridden where the kind of site decides, or where sites share a part."""
        return cls(config, site)

    def delta_weight(self, weight: Tensor) -> Tensor:
        """The change of the weight, (out, in), in the dtype of `weight`; a NotMergeable where there is none."""
        raise NotMergeable(f"{self.name} at {self.site.name} is no change of the weight; keep it separate")

    def merged(self, weight: Tensor) -> Tensor:
        """W', (out, in) in the dtype of `weight`; overridden where a sum would leave the grid that W' lies on."""
        return weight + self.delta_weight(weight)

    def delta_bias(self, bias: Tensor) -> Tensor | None:
        """The change of the bias (zeros where there is none), (out,) float32 with a graph; None for none."""
        return None

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        """(..., in) -> (..., out): the adapted map, bias included."""
        return formula_linear(x, base, self.delta_weight, self.parameters())

    def start(self, weight: Tensor) -> None:
        """Set parameters that start from the base weight (out, in), such as magnitudes. Called once, on attaching."""

    def fit(self, block: nn.Module) -> None:
        """Look at the block that an adapter of a whole block is put around; a ValueError says which forms it knows."""

    def make_room(self, prefix: str, saved: Mapping[str, Tensor]) -> None:
        """Give what grows in training, or `fit` makes, the sizes that it has in `saved`, by names after `prefix`."""

    def reset(self) -> None:
        """Back to no change of the base, in place; random draws come from the ambient torch generator."""
        raise NotImplementedError(f"{type(self).__name__} declares no reset")

    def truncate(self, rank: int) -> None:
        """Keep the leading `rank` components for good, where there are as many; for adapters that are `nested`."""
        raise NotImplementedError(f"{type(self).__name__} is not nested")

    def penalty(self) -> Tensor | None:
        """A scalar added to the loss once per step (orthogonality, load balancing), or None.

        Called after every micro-batch's forward pass and averaged over a step's micro-batches. What it reads of that
        pass (routing, say) must not be kept longer. Padding is told by `lrft.core.context.real_tokens`.
        """
        return None

    def of_features(self, features: tuple[str, ...]) -> Adapter:
        """The adapter that rows with these of its `row_features`, and no others, go through: one that merges."""
        raise NotMergeable(f"{self.name} goes by no features of rows (site {self.site.name})")

    def extra_repr(self) -> str:
        return f"site={self.site.name!r}"


class Additive(Adapter):
    """An adapter whose change does not depend on W: the trait `linear_delta`.

    A subclass says `change`; what is added to the base's output, how a start is subtracted from it, and what moves
    into the base on a restart follow.
    """

    def change(self) -> Tensor:
        """The change of the weight, (out, in) float32, with a graph."""
        raise NotImplementedError(f"{type(self).__name__} declares no change")

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.change().to(weight.dtype)

    def update(self, x: Tensor) -> Tensor:
        """The additive term alone, (..., in) -> (..., out), in the dtype of x."""
        dtype = self.compute_dtype or x.dtype
        return F.linear(x.to(dtype), self.change().to(dtype)).to(x.dtype)

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        """The map on a base that kept its weight: this change less that of `start`, (..., in) -> (..., out)."""
        y: Tensor = self(x, base)
        return y - start.update(x)

    def factors(self, start: Additive | None = None) -> Factors | None:
        """A and B in float32 with change = B A, less that of `start`; None where the change has no low rank."""
        return None

    @torch.no_grad()
    def moved(self, start: Additive | None = None) -> Tensor | Factors:
        """The change less that of `start`, as factors where there are any, else dense (out, in) float32."""
        if (factors := self.factors(start)) is not None:
            return factors
        return self.change() if start is None else self.change() - start.change()


class LowRank(Additive):
    """An adapter by one low-rank term: `branch` is the formula, and everything else follows from it.

    One with a gain (DoRA) depends on W: it says `branch_on` and `delta_weight`, and does not declare `linear_delta`.
    """

    def branch(self) -> Branch:
        """The term as it merges: factors, scale and dropout."""
        raise NotImplementedError(f"{type(self).__name__} declares no branch")

    def change(self) -> Tensor:
        return self.branch().dense()

    def branch_on(self, base: FrozenLinear) -> Branch:
        """The term as it stands beside this base, with its gain."""
        return self.branch()

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self.through(self.branch_on(base), x, base)

    def through(self, branch: Branch, x: Tensor, base: FrozenLinear | None) -> Tensor:
        """A branch on top of `base`, or its term alone."""
        return branch_linear(x, base, branch, dtype=self.compute_dtype, training=self.training)

    def update(self, x: Tensor) -> Tensor:
        return branch_linear(x, None, self.branch(), dtype=self.compute_dtype)

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        assert isinstance(start, LowRank)
        return branch_linear(x, base, self.branch_since(start), dtype=self.compute_dtype)

    @property
    def is_branch_alone(self) -> bool:
        """Whether its forward pass is the contract's own, so that the branch says all that it does."""
        kind = type(self)
        return kind.forward is LowRank.forward and kind.through is LowRank.through

    def branch_since(self, start: LowRank) -> Branch:
        """This term less that of `start`, as (B - B0) A + B0 (A - A0), or its first half where A does not train.

        The differences are formed in float32, so a change much smaller than the start survives bfloat16.
        """
        mine, theirs = self.branch(), start.branch()
        (A, B), (A0, B0) = mine.pair(), theirs.pair()
        if mine.formed is not None and not mine.formed.trains_down:
            return Branch(A, B - B0, mine.scale)
        return Branch(torch.cat([A, A - A0]), torch.cat([B - B0, B0], dim=1), mine.scale)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        assert start is None or isinstance(start, LowRank)
        branch = self.branch() if start is None else self.branch_since(start)
        A, B = branch.pair()
        return A.float(), branch.scale * B.float()


__all__ = ["Adapter", "Additive", "Branch", "Factors", "Formed", "Hosting", "LowRank", "PeftForm", "Shared"]
