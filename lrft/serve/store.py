"""`Store`: which adapters are in memory, under a cap; the one used longest ago makes room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lrft.serve.pages import Pages, Placed

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Site -> A (r, in) and B (out, r), the scale in B."""


@dataclass(frozen=True)
class Source:
    """An adapter that can be brought into memory.

    Attributes:
        shapes: site -> rank, in, out.
        read: its factors, on the host.
    """

    name: str
    shapes: Mapping[str, tuple[int, int, int]]
    read: Callable[[], Factors]

    def pages(self, pages: Pages) -> int:
        """How many pages it takes."""
        return sum(pages.needed(r, i) + pages.needed(r, o) for r, i, o in self.shapes.values())


@dataclass
class Loaded:
    """An adapter in memory.

    Attributes:
        factors: site -> A (r, in) and B transposed (r, out).
        held: how many rows of the batch are computing with it.
    """

    name: str
    factors: dict[str, tuple[Placed, Placed]] = field(default_factory=dict)
    held: int = 0


class Store:
    """Adapters by name, loaded when they are asked for.

    Attributes:
        loads, evictions: how many there were.
    """

    def __init__(self, sources: Mapping[str, Source], pages: Pages) -> None:
        self.pages = pages
        self._sources = sources
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()  # the one used longest ago first
        self._lock = threading.Lock()
        self.loads = self.evictions = 0

    @property
    def resident(self) -> list[str]:
        """Names of those in memory."""
        with self._lock:
            return list(self._loaded)

    def hold(self, name: str) -> Loaded | None:
        """The adapter, which stays until it is let go; None while those that compute leave no room for it."""
        with self._lock:
            found = self._loaded.get(name) or self._load(self._sources[name])
            if found is not None:
                found.held += 1
                self._loaded.move_to_end(name)
            return found

    def let_go(self, loaded: Loaded) -> None:
        """One row less computes with it."""
        with self._lock:
            loaded.held -= 1

    def _load(self, source: Source) -> Loaded | None:
        needed = source.pages(self.pages)
        idle = [one for one in self._loaded.values() if one.held == 0]
        freed = self.pages.free
        for count, one in enumerate([None, *idle]):
            freed += 0 if one is None else self._size(one)
            if freed >= needed:
                for unused in idle[:count]:
                    self._evict(unused)
                break
        else:
            return None
        loaded = Loaded(source.name)
        for site, (A, B) in source.read().items():
            loaded.factors[site] = (self.pages.put(A), self.pages.put(B.T))
        self._loaded[source.name] = loaded
        self.loads += 1
        return loaded

    def _size(self, loaded: Loaded) -> int:
        return self._sources[loaded.name].pages(self.pages)

    def _evict(self, loaded: Loaded) -> None:
        del self._loaded[loaded.name]
        for A, B in loaded.factors.values():
            self.pages.give_back(A)
            self.pages.give_back(B)
        self.evictions += 1
