"""`Adapter`: a change to one site, and everything a method author has to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import NotMergeable


class Adapter(nn.Module):
    """A change to one frozen linear map.

    The one formula is `delta_weight`; the default forward and the merge both follow from it, so they cannot
    disagree. A subclass may override `forward` with a fast path, which a contract test compares with the formula.

    Parameters are created in float32: they are the master weights the optimizer moves. The forward pass casts
    them to `compute_dtype` (or the input's dtype) at the point of use, so an update too small for bfloat16 is
    kept until it adds up.

    Class attributes:
        provides, requires: traits (`lrft.registry.traits`).
        site_kinds: places the method adapts: `linear`, and `mlp` for whole feed-forward blocks, whose own linear
            layers are then no sites.
        roles: parameter name -> role, read by optimizers that treat factors differently.
        scaling: s of the low-rank term, alpha / rank or what the method makes of it.
        peft_names: parameter name -> tensor name in PEFT's file, when the method has a PEFT form.
        peft_transposed: whether PEFT has the method on layers that store (in, out) too, as GPT-2's do.
    """

    name: ClassVar[str]
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    roles: ClassVar[dict[str, str]] = {}
    peft_names: ClassVar[dict[str, str]] = {}
    peft_transposed: ClassVar[bool] = True
    compute_dtype: torch.dtype | None = None
    scaling: float = 1.0

    Config: ClassVar[type[AdapterConfig]] = AdapterConfig

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site

    @classmethod
    def at(cls, config: Any, site: Site, shared: nn.Module | None = None) -> Adapter:
        """The adapter of one site; overridden where the kind of site decides, or where sites share a part."""
        return cls(config, site)

    @classmethod
    def shared(cls, config: Any, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """The part that all sites share, made once, or None."""
        return None

    def delta_weight(self, weight: Tensor) -> Tensor:
        """The change of the weight, (out, in) -> (out, in), in the dtype of `weight`.

        Raises:
            NotMergeable: the method is not a change of the weight.
        """
        raise NotMergeable(
            f"{self.name} is not a change of the weight at {self.site.name}; keep the adapter separate"
        )

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        """(..., in) -> (..., out): the adapted map, bias included."""
        weight = base.weight()
        return base(x) + x @ self.delta_weight(weight).to(x.dtype).mT

    def update(self, x: Tensor) -> Tensor:
        """The additive term alone, (..., in) -> (..., out); for adapters whose change does not depend on W."""
        raise NotImplementedError(f"{type(self).__name__} declares no additive term")

    def forward_since(self, start: Adapter, x: Tensor, base: FrozenLinear) -> Tensor:
        """The map on a base that kept its weight: this change less that of `start`, (..., in) -> (..., out)."""
        return self(x, base) - start.update(x)

    def factors(self, start: Adapter | None = None) -> tuple[Tensor, Tensor]:
        """A (k, in) and B (out, k) in float32 with change = B A, scaling included, less that of `start`.

        For adapters whose change is low-rank and does not depend on W; what restarts and the export to PEFT use.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no factors")

    def start(self, weight: Tensor) -> None:
        """Set parameters that start from the base weight (out, in), such as magnitudes. Called once, on attaching."""

    def fit(self, block: nn.Module) -> None:
        """Look at the block that an adapter of a whole block is put around. Called once, on attaching.

        Raises:
            ValueError: the block is not of a form the method knows; the message says which it knows.
        """

    def reset(self) -> None:
        """Back to no change of the base, in place; random draws come from the ambient torch generator."""
        raise NotImplementedError(f"{type(self).__name__} declares no reset")

    def truncate(self, rank: int) -> None:
        """Keep the leading `rank` components, for good; for adapters that are `nested`.

        Raises:
            ValueError: there are fewer.
        """
        raise NotImplementedError(f"{type(self).__name__} is not nested")

    def penalty(self) -> Tensor | None:
        """A scalar added to the loss once per step (orthogonality, load balancing), or None.

        Called after every micro-batch's forward pass and averaged over a step's micro-batches. What it reads of that
        pass (routing, say) must not be kept longer. Padding is told by `lrft.core.context.real_tokens`.
        """
        return None

    @staticmethod
    def count(config: Any, site: Site) -> int:
        """How many numbers train at `site`, as the docstring's formula says."""
        raise NotImplementedError("declare the parameter count")

    @classmethod
    def peft_config(cls, config: Any, with_start: bool = False) -> dict[str, Any] | None:
        """The method's own keys of PEFT's adapter_config.json, or None when PEFT cannot express it.

        Args:
            with_start: the tensors hold the start as well, subtracted, so that they fit the pretrained base.
        """
        return None

    def peft_keys(self, with_start: bool = False) -> dict[str, Any] | None:
        """`peft_config` of this very site; overridden where training changes the rank."""
        return self.peft_config(self.config, with_start)

    def peft_tensors(self, start: Adapter | None = None) -> dict[str, Tensor]:
        """Own name -> tensor as PEFT expects it, with the `start` that the base gave up subtracted."""
        assert start is None, f"{type(self).__name__} declares no form with a start"
        return self.state_dict()

    def extra_repr(self) -> str:
        return f"site={self.site.name!r}"


class Shared(nn.Module):
    """What the adapters of all sites share: common bases, a router over whole adapters.

    Its parameters train with the adapters' and are saved beside them under `shared.`.

    Class attributes:
        roles: parameter name -> role.
    """

    roles: ClassVar[dict[str, str]] = {}

    def bind(self, model: Any) -> None:
        """Called once when every site has its adapter; `model` is a `LanguageModel` around transformers' `hf`."""

    def peft_tensors(self) -> dict[str, Tensor] | None:
        """PEFT's name -> tensor, or None when PEFT has no such part, and so no form for the adapters either."""
        return None
