"""`Placed`: adapters of single entries or blocks of the weight, at places that an init of their own chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.entries import entries_linear, filled


class Placed(Additive):
    """An additive change at places that do not move while it trains: the trait `placed`.

    How many places there are is the adapter's business, which they are that of the init of the same name. Until it has
    chosen, they lie evenly over the weight, for counting and for what knows no data.

    Attributes:
        places: flat indices of the entries, or numbers of the blocks, ascending; saved with the adapter.
    """

    places: Tensor

    def lay(self, count: int, total: int) -> None:
        """Make `count` places of `total`.

        Raises:
            ValueError: there are not so many, or none is asked for.
        """
        if not 0 < count <= total:
            raise ValueError(f"asks for {count:,} places of {total:,}; ask for 1 to {total:,}")
        kind = torch.int32 if total < 2**31 else torch.int64
        even = torch.arange(count).mul_(total).div_(count, rounding_mode="floor")
        self.register_buffer("places", even.to(kind))

    @torch.no_grad()
    def place(self, places: Tensor) -> None:
        """Set the places, as many as there are, ascending and each once."""
        assert places.shape == self.places.shape, "the count is the adapter's"
        self.places.copy_(places)


class Entries(Placed):
    """W' = W + S with S = 0 outside k places, of which the values train; a subclass says `count`.

    Memory: 4 k bytes of values, 4 k of places (8 k from 2^31 entries on), moments of k numbers. A pass forms
    W + S where products are in float32, else S, or a few columns at a time where S has less than one entry in 1,024,
    and keeps of it nothing. W is never written, so
    weight decay pulls the differences to 0 and not the weights, entries without a place never move, and the norm that
    gradients are clipped by is of the k entries alone.

    On a dense base too this is less than training the entries of W in place, unless more than a quarter of them train.
    With their gradient and Adam's moments k entries are 20 k bytes. In place they are 12 k and the gradient of W, which
    stands from the backward pass to the step: 4 in out in float32, 2 in out in half precision. The work is the same in
    float32, where one product takes W + S. In half precision S is a product of its own, 5 as large as W in the place of
    3, and updates add up that a weight in place would round away. And the pretrained weight is still there.
    """

    roles = {"values": "sparse"}

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        many = self.count(config, site)
        self.lay(many, site.in_features * site.out_features)
        self.values = nn.Parameter(torch.zeros(many))

    def reset(self) -> None:
        nn.init.zeros_(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, (out, in)."""
        return self.site.out_features, self.site.in_features

    def held(self) -> tuple[Tensor, Tensor]:
        """The values, with a graph, and the places that they are at."""
        return self.values, self.places

    def change(self) -> Tensor:
        return filled(*self.held(), self.shape)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return entries_linear(x, base, *self.held(), self.shape, self.compute_dtype or x.dtype)

    def update(self, x: Tensor) -> Tensor:
        return entries_linear(x, None, *self.held(), self.shape, self.compute_dtype or x.dtype)


class Renewable(Entries):
    """Entries that are chosen by the weight as it then is, and may be others later: the trait `renewable`.

    What an entry had learnt when it lost its place stays in the change and does not train, until it has one again.

    Attributes:
        left_places, left_values: of entries that moved and have no place now, as many as there are; saved with the
            adapter.
    """

    left_places: Tensor
    left_values: Tensor

    def __init__(self, config: Any, site: Site) -> None:
        super().__init__(config, site)
        self._leave(self.places[:0], self.values.detach()[:0])

    def wanted(self, weight: Tensor) -> Tensor:
        """The places that the weight (out, in) asks for, as many as there are, ascending."""
        raise NotImplementedError(f"{type(self).__name__} declares no wanted places")

    @torch.no_grad()
    def renew(self, places: Tensor) -> None:
        """Move to these places; the change of the weight stays what it is."""
        whole = self.change().flatten()
        self.place(places)
        self.values.copy_(whole[places])
        whole[places] = 0
        left = whole.nonzero().flatten()
        self._leave(left.to(self.places.dtype), whole[left])

    def held(self) -> tuple[Tensor, Tensor]:
        if not len(self.left_places):
            return self.values, self.places
        return torch.cat([self.values, self.left_values]), torch.cat([self.places, self.left_places])

    def reset(self) -> None:
        super().reset()
        self._leave(self.left_places[:0], self.left_values[:0])

    def make_room(self, prefix: str, saved: Mapping[str, Tensor]) -> None:
        """As many entries without a place as there were."""
        if (places := saved.get(f"{prefix}left_places")) is not None:
            like = places.to(self.places)
            self._leave(torch.empty_like(like), self.values.new_empty(like.shape).detach())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self.make_room(prefix, state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _leave(self, places: Tensor, values: Tensor) -> None:
        self.register_buffer("left_places", places.clone())
        self.register_buffer("left_values", values.clone())


def budget(share: float, total: int) -> int:
    """A share of `total`, rounded, and one at the least."""
    return rounded(share * total)


def rounded(many: float) -> int:
    """The nearest whole number, and one at the least."""
    return max(1, math.floor(many + 0.5))


def cut(many: float) -> int:
    """The whole number below, and one at the least."""
    return max(1, int(many))
