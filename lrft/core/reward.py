"""`Reward`: how good an answer is that the model drew, and what its author has to fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lrft.registry.config import RewardConfig
from lrft.registry.json import Json


@dataclass(frozen=True)
class Attempt:
    """An answer that the model drew to the prompt of a row.

    Attributes:
        output: its text, special tokens left out; where the row's own answer has thoughts before it, what follows them.
        written: all of its text.
        reference: the text of the row's own answer.
        tokens: how many were drawn, what ended it included.
        stopped: whether it ended by itself.
        limit: the most tokens that an answer may have.
        row: the row of the data.
    """

    output: str
    written: str
    reference: str
    tokens: int
    stopped: bool
    limit: int
    row: Mapping[str, Json]


class Reward:
    """A number for an answer; several are weighed and added by the objective that asks for them.

    One that provides `ranks` also says what each item is worth of an answer that is a list.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    Config: ClassVar[type[RewardConfig]] = RewardConfig

    config: RewardConfig

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    def __call__(self, attempt: Attempt) -> float:
        """How good it is."""
        raise NotImplementedError(f"{type(self).__name__} declares no reward")

    def by_rank(self, attempt: Attempt, items: Sequence[str]) -> list[float]:
        """How good each item is, of an answer that is a list: what an answer that is this item alone would be given.

        Args:
            items: its lines, without those that are too many.
        """
        return [self(replace(attempt, output=item, written=item)) for item in items]

    def check(self, reference: str, limit: int) -> None:
        """Refuse a row before anything is drawn.

        Args:
            reference: the text of its answer.
            limit: the most tokens that an answer may have.

        Raises:
            DataError: no answer could be compared with this one.
            RecipeError: a setting does not go with the limit.
        """
