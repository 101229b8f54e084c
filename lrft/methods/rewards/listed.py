"""The items of an answer that is a list are among those of the row's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lrft.core.reward import Attempt, Reward
from lrft.registry.axes import REWARDS
from lrft.registry.config import Field, Literal, RewardConfig
from lrft.registry.errors import DataError


@REWARDS.register
class Listed(Reward):
    """What is found of the row's own list, a line of which is an item, by the lines of an answer.

        h_k = [line k is a line of the reference that no line before it was]
        g_k = h_k (`discount: none`) or h_k / log2(k + 1) (`discount: log`)
        r   = sum of g_k

    with k from 1.

    Score: lines are compared without regard to case, and to white space but for where it is. Rank by rank
    (`objective.method: rank_grpo`), rank k is given h_k, or with `discount: log` what it and those after it gain, the
    sum of g_j for j >= k.
    Source: Zhu et al., "Rank-GRPO", 2025, arXiv 2510.20150, and the authors' code, which calls them `exp_inf` and
    `log_decay`.
    Departures: the whole line is the item; the authors' code reads a title and a year, allows for two years more or
    less, and gives nothing to what is in no catalogue or was seen before.
    """

    provides = {"ranks"}

    config: Config

    class Config(RewardConfig):
        discount: Literal["none", "log"] = Field(
            "none", description="count what is found, or let it count less further down the list"
        )

    def __call__(self, attempt: Attempt) -> float:
        return sum(self._gains(attempt.reference, attempt.output.split("\n")))

    def by_rank(self, attempt: Attempt, items: Sequence[str]) -> list[float]:
        gains = self._gains(attempt.reference, items)
        return gains if self.config.discount == "none" else [sum(gains[k:]) for k in range(len(gains))]

    def check(self, reference: str, limit: int) -> None:
        if not _items(reference.split("\n")):
            raise DataError("the reference holds no line, so no answer has an item of it; correct the row")

    def _gains(self, reference: str, lines: Sequence[str]) -> list[float]:
        left = _items(reference.split("\n"))
        found: list[float] = []
        for rank, line in enumerate(map(_plain, lines), 1):
            hit = left[line] > 0
            left[line] -= hit
            found.append(hit / math.log2(rank + 1) if self.config.discount == "log" else float(hit))
        return found


def _items(lines: Sequence[str]) -> Counter[str]:
    return Counter(line for line in map(_plain, lines) if line)


def _plain(line: str) -> str:
    return " ".join(line.split()).casefold()
