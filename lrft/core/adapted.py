"""`Adapted`: a frozen map with an adapter on it. Written once, for every method and every storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Additive, Factors
from lrft.core.changed import Changed
from lrft.core.frozen import FrozenLinear
from lrft.core.less import Less, changed, start_of
from lrft.core.renewing import Renewing
from lrft.registry.errors import NotMergeable


class Together(Protocol):
    """Sites that are computed together."""

    def product(self, site: nn.Module, x: Tensor) -> Tensor | None:
        """The output of `site` without a bias that trains, or None where it has to compute for itself."""


class Adapted(nn.Module):
    """What replaces a linear layer of the base model: `adapter(x, base)`, or the pretrained map while disabled.

    Args:
        base: the frozen map.

    Attributes:
        bias: (out,) a bias of the base model that trains, or None. It is added out here, and `base` then has none, so
            that neither an adapter's fast path nor a storage has to pass its gradient on.
        siblings: sites that read the same tensor and are computed together (`lrft.core.siblings`), or None.
    """

    base: FrozenLinear
    bias: nn.Parameter | None
    siblings: Together | None

    def __init__(self, base: FrozenLinear, adapter: Adapter) -> None:
        super().__init__()
        self.register_parameter("bias", None)
        self.base = base
        self.adapter = adapter
        self.enabled = True
        self.siblings = None

    def train_bias(self, bias: nn.Parameter) -> None:
        """Let `bias` (out,), the base model's own parameter, be added to what a base without a bias gives."""
        assert self.base.bias is None, "the bias would be added twice"
        self.bias = bias

    @property
    def start(self) -> Additive | None:
        """The adapter at step 0, where its start is a change that the base gave up."""
        less = start_of(self.base)
        return None if less is None else less.start

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self._without_bias(x)
        return y if self.bias is None else y + self._moved(self.bias).to(y.dtype)

    def _moved(self, bias: nn.Parameter) -> Tensor:
        """A bias that trains, with what the adapter makes of it beside what it adds to a map without one."""
        change = self.adapter.delta_bias(bias) if self.enabled else None
        if change is None:
            return bias
        brought = self.adapter.delta_bias(torch.zeros_like(bias))
        assert brought is not None, "an adapter that changes one bias changes every one"
        return bias + (change - brought)

    def _without_bias(self, x: Tensor) -> Tensor:
        if self.siblings is not None and (y := self.siblings.product(self, x)) is not None:
            return y
        return self.base.through(self.adapter, x) if self.enabled else self.base.pretrained(x)

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + delta(W), less the start where W still holds it, in float32, (out, in).

        Args:
            weight: the dense pretrained weight to merge onto; by default the base as trained against (decoded).

        Raises:
            NotMergeable: the method is not a change of the weight.
        """
        self._check_mergeable()
        original = self.base.original.weight().float() if weight is None else weight.float()
        change = self.base.change()
        dense = original if change is None else original + change
        merged = self.adapter.merged(dense)
        less = start_of(self.base)
        whole = less is not None and (less.anchored or weight is not None)
        return merged - less.start.delta_weight(dense) if less is not None and whole else merged

    @torch.no_grad()
    def merged_bias(self) -> Tensor | None:
        """The bias (out,) to merge, float32; None where there is none, or where it is still the base model's own.

        Raises:
            NotMergeable: the adapter brings a bias, and the architecture has no place for one.
        """
        self._check_mergeable()
        bias = self.held_bias
        if bias is None:
            return None
        change = self.adapter.delta_bias(bias.float())
        if change is not None:
            return bias.float() + change
        return bias.float() if isinstance(self.base, Changed) and self.base.b is not None else None

    @property
    def held_bias(self) -> Tensor | None:
        """The bias that is added, be it constant or one that trains."""
        return self.bias if self.base.bias is None else self.base.bias

    @property
    def _device(self) -> torch.device:
        return next(self.adapter.parameters()).device

    def _check_mergeable(self) -> None:
        if reason := type(self.adapter).why_not_merged(self.adapter.config, self.adapter.site):
            raise NotMergeable(reason)

    @torch.no_grad()
    def pretrained_weight(self) -> Tensor:
        """The weight before any training, as this base stores it, in float32, (out, in)."""
        return self.base.pretrained_weight()

    @torch.no_grad()
    def change(self) -> Tensor:
        """`merged_weight() - pretrained_weight()`, (out, in) float32, without the rounding of either sum."""
        original, folded = self.base.original.weight().float(), self.base.change()
        dense = original if folded is None else original + folded
        found = self.adapter.delta_weight(dense)
        if self.start is not None:
            found = found - self.start.delta_weight(original)
        return found if folded is None else found + folded

    @torch.no_grad()
    def factors(self) -> Factors | None:
        """A and B in float32 with `change()` = B A, what restarts folded included; None where it has no low rank."""
        if not isinstance(self.adapter, Additive) or "linear_delta" not in self.adapter.provides:
            return None
        own = self.adapter.factors(self.start)
        if own is None or not isinstance(self.base, Changed):
            return own
        if self.base.A is None or self.base.B is None:
            return None
        return torch.cat([own[0], self.base.A]), torch.cat([own[1], self.base.B], dim=1)

    @torch.no_grad()
    def absorb(self, share: float = 1.0) -> None:
        """Move `share` of the adapter's change into the base; the adapter itself is left to the caller.

        The change is kept beside the base, exactly (`Changed`), and never rounded into its storage. An anchored start
        is subtracted once and for all; one that the base gave up still says what that was.

        Raises:
            ValueError: only a part is asked for where the start is subtracted, or of a change that is not linear; or
                the adapter is the weight itself, or cannot start anew from no change (trained in `one_stage`).
        """
        if "one_stage" in self.adapter.requires:
            raise ValueError(
                f"{self.adapter.name} is trained in one stage; it cannot start anew from no change"
            )
        if "own_weights" in self.adapter.provides:
            raise ValueError(f"{self.adapter.name} is the weight itself; there is no base to move it into")
        linear = "linear_delta" in self.adapter.provides
        if share != 1 and (self.start is not None or not linear):
            raise ValueError("only a whole change can be absorbed where it depends on W or on a start")
        if linear:
            assert isinstance(self.adapter, Additive), "a linear change is additive"
            anchored = isinstance(self.base, Less) and self.base.anchored
            moved = self.adapter.moved(self.start if anchored else None)
            scaled = (moved[0], share * moved[1]) if isinstance(moved, tuple) else share * moved
        else:
            scaled = self.merged_weight() - self.base.weight().float()
        base = self.base = changed(self.base)
        self._absorb_bias(base)
        base.add(scaled)

    def _absorb_bias(self, base: Changed) -> None:
        """Move the change of the bias into the one that trains, or beside the base's."""
        bias = self.held_bias
        given = torch.zeros(base.out_features, device=self._device) if bias is None else bias
        change = self.adapter.delta_bias(given.float())
        if change is not None and self.bias is not None:
            self.bias.add_(change.to(self.bias.dtype))
        elif change is not None and (bias is not None or bool(change.any())):
            base.add_bias(change)

    @torch.no_grad()
    def fold(self, renew: bool = False) -> None:
        """Absorb the adapter's change whole and reset the adapter: the function stays as it was.

        Args:
            renew: what the adapter took from the weight it was put on, it takes from the one that it leaves.
        """
        self.absorb()
        self.adapter.reset()
        adapter, weight = self.adapter, self.base.weight()
        if renew and isinstance(adapter, Renewing):
            adapter.renew(weight)
        else:
            adapter.start(weight)


def adapted(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every adapted site of a model with its module path."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            yield name, module


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model without its adapters, for reference log-probabilities and baselines.

    Base weights that train keep the values they have by now; `lrft.model.trained.put_back` gives those they had.
    """
    sites = [site for _, site in adapted(model) if site.enabled]
    for site in sites:
        site.enabled = False
    try:
        yield
    finally:
        for site in sites:
            site.enabled = True
