"""`Foreign`: a storage in which checkpoints of other programs hold layers, under keys of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lrft.core.frozen import FrozenLinear
from lrft.registry.json import Json


class Foreign(FrozenLinear):
    """Layers of such a checkpoint have no dense weight; they are taken over by `unpack`, which is given their tensors.

    Attributes:
        layer_keys: what follows the path of a layer in the keys of its tensors; the first is there of every layer.
    """

    layer_keys: ClassVar[tuple[str, ...]]

    @classmethod
    def held_by(cls, said: Mapping[str, Any]) -> dict[str, Json] | None:
        """The settings with which a checkpoint of this `quantization_config` holds its layers; None where it does not.

        Raises:
            UsageError: in a way that is not read.
        """
        raise NotImplementedError(f"{cls.__name__} declares no configuration")

    @classmethod
    def dense_shape(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(out, in) of a layer, from the shapes of its tensors by `layer_keys`.

        Raises:
            KeyError: a tensor is not there.
            ValueError: one has another form.
        """
        raise NotImplementedError(f"{cls.__name__} declares no shape")
