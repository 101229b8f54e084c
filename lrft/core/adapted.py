"""`Adapted`: a frozen map with an adapter on it. Written once, for every method and every storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import Changed, FrozenLinear
from lrft.registry.errors import NotMergeable


class Adapted(nn.Module):
    """What replaces a linear layer of the base model: `adapter(x, base)`, or the pretrained map while disabled.

    Args:
        start: a frozen copy of the adapter at step 0, when its start is a change that the base gave up.
        anchored: the base kept its weight W and the start is subtracted here; otherwise the base stores
            W - delta_0 and the start only remembers what is missing.
        offset: A (k, in) and B (out, k) of what was taken off W before the base was stored, where that is not the
            start itself.

    Attributes:
        bias: (out,) a bias of the base model that trains, or None. It is added out here, and `base` then has none, so
            that neither an adapter's fast path nor a storage has to pass its gradient on.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        base: FrozenLinear,
        adapter: Adapter,
        start: Adapter | None = None,
        anchored: bool = False,
        offset: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.start = None if start is None else start.requires_grad_(False).eval()
        self.anchored = anchored
        self.offset = offset
        self.enabled = True
        self.register_parameter("bias", None)

    def train_bias(self, bias: nn.Parameter) -> None:
        """Let `bias` (out,), the base model's own parameter, be added to what a base without a bias gives."""
        assert self.base.bias is None, "the bias would be added twice"
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self._without_bias(x)
        return y if self.bias is None else y + self.bias

    def _without_bias(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self._pretrained(x)
        if self.start is not None and self.anchored:
            return self.adapter.forward_since(self.start, x, self.base)
        return self.adapter(x, self.base)

    def _pretrained(self, x: Tensor) -> Tensor:
        """The pretrained map, not its residual: references and baselines must not miss what the base gave up."""
        base = getattr(self.base, "original", self.base)  # a whole block has no storage of its own
        return base(x) if self.start is None or self.anchored else base(x) + self.start.update(x)

    def train(self, mode: bool = True) -> Adapted:
        """The start stays in evaluation mode: it is a constant."""
        super().train(mode)
        if self.start is not None:
            self.start.eval()
        return self

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + delta(W), less the start where W still holds it, in float32, (out, in).

        Args:
            weight: the dense pretrained weight to merge onto; by default the base as trained against (decoded).

        Raises:
            NotMergeable: the method is not a change of the weight.
        """
        if "mergeable" not in self.adapter.provides:
            name, site = self.adapter.name, self.adapter.site.name
            raise NotMergeable(f"{name} cannot be merged (site {site}); keep the adapter separate")
        if weight is None:
            original = self.base.original.weight().float()
            whole = self.anchored
        else:
            original, whole = weight.float(), True
        change = self.base.change()
        dense = original if change is None else original + change
        merged = dense + self.adapter.delta_weight(dense)
        return merged - self.start.delta_weight(dense) if self.start is not None and whole else merged

    @torch.no_grad()
    def pretrained_weight(self) -> Tensor:
        """The weight before any training, as this base stores it, in float32, (out, in)."""
        dense = self.base.original.weight().float()
        return dense if self.start is None or self.anchored else dense + self.start.delta_weight(dense)

    @torch.no_grad()
    def change(self) -> Tensor:
        """`merged_weight() - pretrained_weight()`, (out, in) float32, without the rounding of either sum."""
        original, folded = self.base.original.weight().float(), self.base.change()
        dense = original if folded is None else original + folded
        found = self.adapter.delta_weight(dense)
        if self.start is not None:
            found = found - self.start.delta_weight(dense if self.anchored else original)
        return found if folded is None else found + folded

    @torch.no_grad()
    def absorb(self, share: float = 1.0) -> None:
        """Move `share` of the adapter's change into the base; the adapter itself is left to the caller.

        The change is kept beside the base, exactly (`Changed`), and never rounded into its storage.

        Raises:
            ValueError: only a part is asked for where the start is subtracted, or of a change that is not linear; or
                the adapter is the weight itself.
        """
        if "own_weights" in self.adapter.provides:
            raise ValueError(f"{self.adapter.name} is the weight itself; there is no base to move it into")
        linear = "linear_delta" in self.adapter.provides
        if share != 1 and (self.start is not None or not linear):
            raise ValueError("only a whole change can be absorbed where it depends on W or on a start")
        if linear:
            A, B = self.adapter.factors(self.start if self.anchored else None)
            change: Tensor | tuple[Tensor, Tensor] = (A, share * B)
        else:
            change = self.merged_weight() - self.base.weight().float()
        if not isinstance(self.base, Changed):
            self.base = Changed(self.base)
        self.base.add(change)
        if (
            self.anchored
        ):  # subtracted once and for all; a start that the base gave up still says what that was
            self.start, self.anchored = None, False

    @torch.no_grad()
    def fold(self) -> None:
        """Absorb the adapter's change whole and reset the adapter: the function stays as it was."""
        self.absorb()
        self.adapter.reset()
        self.adapter.start(self.base.weight())


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
