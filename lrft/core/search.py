"""`Search`: which configuration is tried next, given what those before it gave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from lrft.registry.config import MethodConfig

DIGITS = 3  # significant ones of a number that is drawn from a range
TRIES = 200  # draws for a configuration that is possible and new, before every one is looked at in turn
LISTED = 10_000  # configurations that are looked at in turn, at most

Genes = tuple[int | float, ...]
"""A configuration: of each gene the place of its option, or a number of its range."""


@dataclass(frozen=True)
class Gene:
    """One number of a configuration.

    Attributes:
        name: the recipe key that it sets, with the item in brackets where it says whether a list has that item.
        options: how many there are to choose from, counted from 0; 0 for a range.
        ordered: the options ascend, so that neighbours are alike.
        low, high: ends of a range, both of which are possible.
        log: the range is even in the logarithm.
        whole: the range has whole numbers alone.
    """

    name: str
    options: int = 0
    ordered: bool = False
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def draw(self, rng: Random) -> int | float:
        """An option, each as likely, or a number of the range."""
        return rng.randrange(self.options) if self.options else self.at(rng.random())

    def at(self, share: float) -> int | float:
        """The number so far up the range, from 0 to 1."""
        number = self.low + share * (self.high - self.low)
        if self.log:
            number = self.low * (self.high / self.low) ** share
        return self.round(number)

    def round(self, number: float) -> int | float:
        """The number of the range that is meant: whole where it has whole ones alone, else of `DIGITS` digits."""
        if self.whole:
            return min(max(round(number), int(self.low)), int(self.high))
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried.

    Attributes:
        losses: what is to be small, the score first (turned round where more is better), then what it costs; None where
            there is no score: the training diverged, or did not fit into memory.
    """

    genes: Genes
    losses: tuple[float, float] | None


@dataclass(frozen=True)
class Known:
    """What a proposal may look at, and all that it may depend on.

    Attributes:
        chosen: the configurations proposed so far, in their order.
        trials: what the first of them gave, as many as `Search.known` asks for.
        possible: whether a configuration is a valid recipe; asked before anything is trained.
    """

    chosen: Sequence[Genes]
    trials: Sequence[Trial]
    possible: Callable[[Genes], bool]

    def is_new(self, genes: Genes) -> bool:
        """Whether it was not proposed yet, and can be."""
        return genes not in self.chosen and self.possible(genes)


class Search:
    """Proposes configurations one after the other.

    A proposal is a function of the seed, its index and `Known`: so a search that was cut off goes on with the same
    configurations, and how many run at a time changes none of them.

    Args:
        genes: what there is to choose.
        seed: of the whole search.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`

    def __init__(self, config: MethodConfig, genes: Sequence[Gene], seed: int) -> None:
        self.config, self.genes, self.seed = config, tuple(genes), seed

    def known(self, index: int) -> int:
        """How many trials, from the first on, are over before the configuration at `index` is proposed."""
        return 0

    def propose(self, index: int, known: Known) -> Genes | None:
        """The configuration at `index`, from 0 on; None where there is no other.

        Raises:
            MissingExtra: a library that the search needs is not installed.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no propose")

    def rng(self, index: int) -> Random:
        """The numbers that are drawn for the proposal at `index`."""
        return Random(f"{self.seed} {index}")

    def draw(self, rng: Random) -> Genes:
        """Every gene drawn for itself."""
        return tuple(gene.draw(rng) for gene in self.genes)

    def new(self, known: Known, *ways: Callable[[], Genes]) -> Genes | None:
        """The first configuration drawn that is new and possible; None where there seems to be none.

        Args:
            ways: of drawing one, each tried `TRIES` times. After the last it is the first of all that there are, where
                these are no more than `LISTED`.
        """
        for draw in ways:
            for _ in range(TRIES):
                if known.is_new(genes := draw()):
                    return genes
        if not 0 < math.prod(gene.options for gene in self.genes) <= LISTED:
            return None
        return next(filter(known.is_new, every(self.genes)), None)


def every(genes: Sequence[Gene], points: int = 2) -> Iterator[Genes]:
    """All configurations, the last gene changing fastest; ranges at `points` places that are even, ends included."""
    return itertools.product(*(options(gene, points) for gene in genes))


def options(gene: Gene, points: int) -> list[int | float]:
    """The options of a gene; of a range, different numbers at `points` places."""
    if gene.options:
        return list(range(gene.options))
    return list(dict.fromkeys(gene.at(place / (points - 1)) for place in range(points)))


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """By the score, equal ones by what they cost and then in their order; what has no score is last."""
    return sorted(trials, key=lambda trial: trial.losses or (math.inf, math.inf))
