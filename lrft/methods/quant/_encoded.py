"""What every storage format shares: its settings, and scales that a cast of the model must not touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.registry.config import MethodConfig
from lrft.registry.errors import NumericalError


class Encoded(FrozenLinear):
    """A frozen linear map in an encoded form, built from the dense weight.

    Args:
        weight: dense weight (out, in); its dtype is the compute dtype.
        bias: (out,) or None.
        config: the format's settings; its defaults when None.

    Raises:
        NumericalError: the weight has no such form, as its scales are too large for their dtype.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = {"rounded_base"}
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    scales: ClassVar[tuple[str, ...]] = ()  # buffers that a cast of the model must leave alone
    config: MethodConfig

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, config: MethodConfig | None = None
    ) -> None:
        self.config = self.Config() if config is None else config  # encoding, in the next line, reads it
        super().__init__(weight, bias)
        self._check_scales(
            weight, finite=True
        )  # one that is not is refused by its name, where the model is read

    def write(self, weight: Tensor) -> None:
        super().write(weight)
        self._check_scales(weight)

    def _held_scales(self) -> Iterable[Tensor]:
        """All scales, in the dtype that they are kept in."""
        return [one for name in self.scales if (one := getattr(self, name, None)) is not None]

    def _check_scales(self, weight: Tensor, finite: bool = False) -> None:
        """Refuse scales that are no numbers; with `finite` those of a weight of numbers alone."""
        if all(one.is_meta or bool(one.isfinite().all()) for one in self._held_scales()):
            return
        shape, largest = " x ".join(map(str, weight.shape)), float(weight.detach().float().abs().max())
        if finite and not math.isfinite(largest):
            return
        why = f"its values go up to {largest:.3g}, and then a scale is too large for its dtype"
        why = why if math.isfinite(largest) else "it holds what is no finite number"
        raise NumericalError(
            f"quantization.method: {self.name} cannot store a weight of {shape}: {why}; write quantization: none, or "
            "look at the model's weights"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoded:
        """Follow moves between devices. A cast such as `.half()` sets the compute dtype, not the scales'."""
        before = {name: getattr(self, name) for name in self.scales}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in before.items():
            if scale is not None and scale.dtype != (after := self.get_buffer(name)).dtype:
                self.register_buffer(name, scale.to(after.device))
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self
