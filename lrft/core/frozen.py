"""`FrozenLinear`: a linear map that does not train, and the only thing that knows how its weight is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapter_map import AdapterMap
from lrft.ops.frozen_matmul import frozen_linear
from lrft.ops.products import widen
from lrft.registry.errors import UsageError


class FrozenLinear(nn.Module):
    """y = x W^T + b with W held in some storage format.

    A format is a subclass with `weight` and `write`. Everything else, adapters included, sees a dense
    (out, in) weight and never a bit width. `forward` is computed from `weight()`, so what trains is what merges.

    Args:
        weight: dense weight (out, in); encoded by the subclass.
        bias: (out,) or None. Kept as it is; `train_bias` replaces it by one that trains.

    Attributes:
        lighter: the format to try where this one takes too much memory, or None.
        on_cpu: what a training on a CPU is told of the format, or empty.
        movable: the weight is stored as `weight` gives it, and may stand in a larger tensor: `move_to`.
    """

    provides: ClassVar[set[str]] = set()
    lighter: ClassVar[str | None] = None
    on_cpu: ClassVar[str] = ""
    movable: ClassVar[bool] = False
    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = weight.dtype
        self.edited = False
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)
        self.encode(weight.detach())

    def begin_around(self, inner: FrozenLinear) -> None:
        """In the place of `__init__`, of a map around another one: its shape, precision and history, no storage."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = inner.out_features, inner.in_features
        self.compute_dtype = inner.compute_dtype
        self.edited = inner.edited

    def train_bias(self, bias: nn.Parameter) -> None:
        """Let `bias` (out,), the base model's own parameter, stand in the place of the constant one."""
        self.bias = bias

    @classmethod
    def bits(cls, config: Any) -> float | None:
        """Stored bits a weight with these settings; None where only storing some tells. Tests compare it with that."""
        return None

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> FrozenLinear:
        """The layer of a checkpoint that holds it in this format already, codes bit for bit, computing in `dtype`.

        Args:
            tensors: what the checkpoint holds of the layer's weight, by what follows the layer's path.

        Raises:
            UsageError: it is stored otherwise.
        """
        raise UsageError(f"no checkpoint holds layers as {cls.__name__}")

    def encode(self, weight: Tensor) -> None:
        """Store the dense (out, in) `weight` in this format."""
        raise NotImplementedError(f"{type(self).__name__} declares no encoding")

    def weight(self) -> Tensor:
        """The dense weight (out, in) in the compute dtype, whatever the storage."""
        raise NotImplementedError(f"{type(self).__name__} declares no decoding")

    def weight_as(self, work: torch.dtype) -> tuple[Tensor, bool]:
        """The weight in the precision of a product, and whether it is a copy, in whose place the next one may be."""
        weight = self.weight()
        matrix = widen(weight, work, "weight")
        return matrix, matrix is not weight

    def write(self, weight: Tensor) -> None:
        """Replace the weight: re-encode `weight` (out, in) and remember that the base was edited."""
        self.encode(weight.detach().to(self.compute_dtype))
        self.edited = True

    def move_to(self, place: Tensor) -> None:
        """Keep the weight in `place` (out, in), a part of a larger tensor, from now on."""
        raise NotImplementedError(f"{type(self).__name__} is not movable")

    @property
    def original(self) -> FrozenLinear:
        """The map as it is stored: this one, unless something is kept beside it."""
        return self

    def change(self) -> Tensor | None:
        """What was added to the original weight since, (out, in) float32; None where nothing was."""
        return None

    def pretrained(self, x: Tensor) -> Tensor:
        """The map before any training, (..., in) -> (..., out), whatever was moved out of the base or into it."""
        return self.original(x)

    def pretrained_weight(self) -> Tensor:
        """The weight before any training as this base stores it, (out, in) float32."""
        return self.original.weight().float()

    def through(self, adapter: AdapterMap, x: Tensor) -> Tensor:
        """The adapted map, (..., in) -> (..., out)."""
        return adapter(x, self)

    @property
    def stored_bytes(self) -> int:
        """Bytes the storage occupies, scales included, bias left out."""
        return sum(b.numel() * b.element_size() for name, b in self.named_buffers() if name != "bias")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return frozen_linear(x, self)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Absent(FrozenLinear):
    """The place of a weight that an adapter has taken over: zeros that take no memory, and the bias.

    Args:
        weight: what stood there; its shape, dtype and device are kept.
    """

    provides: ClassVar[set[str]] = {"dense_base"}

    def encode(self, weight: Tensor) -> None:
        self.register_buffer("zero", weight.new_zeros(1), persistent=False)

    def weight(self) -> Tensor:
        return self.get_buffer("zero").expand(self.out_features, self.in_features)

    def write(self, weight: Tensor) -> None:
        """Refused: there is nothing to write to.

        Raises:
            ValueError: always.
        """
        raise ValueError("the weight of this layer is its adapter's; nothing can be folded into it")


class Quantizer(Protocol):
    """Makes the frozen layer from a dense weight (out, in) and an optional bias (out,)."""

    def __call__(self, weight: Tensor, bias: Tensor | None = None, **settings: object) -> FrozenLinear:
        """Store `weight`; keyword settings override the recipe's for this layer."""
