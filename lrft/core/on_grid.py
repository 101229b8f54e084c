"""`OnGrid`: an adapter whose merged weight lies on integers in groups, so that a storage of such holds it as it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lrft.registry.json import Json


class InGroups(NamedTuple):
    """A weight scale * (codes - zero), each scale and zero of as many consecutive inputs of a row.

    Attributes:
        codes: (out, in) uint8.
        zero: (out, groups) uint8, and `scale`: (out, groups) float32.
    """

    codes: Tensor
    zero: Tensor
    scale: Tensor


class OnGrid:
    """An adapter that may round what is merged, with steps that half precision can say."""

    @property
    def grid_settings(self) -> dict[str, Json] | None:
        """Its `bits` and `group_size`; None where it rounds nothing."""
        raise NotImplementedError(f"{type(self).__name__} says of no grid")

    def on_grid(self, merged: Tensor) -> InGroups | None:
        """The integers of its merged weight (out, in), float32; None where it does not lie on its grid exactly."""
        raise NotImplementedError(f"{type(self).__name__} says of no grid")
