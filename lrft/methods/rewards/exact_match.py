"""The answer is the row's own."""

from __future__ import annotations

from lrft.core.reward import Attempt, Reward
from lrft.core.written import check_json, same_json, same_text
from lrft.registry.axes import REWARDS
from lrft.registry.config import Field, Literal, RewardConfig


@REWARDS.register
class ExactMatch(Reward):
    """1 where an answer is the row's own, else 0.

        r = [strip(output) = strip(reference)]

    Score: as the task `exact_match` compares: white space at both ends is dropped (`compare: text`), or both are parsed
    as JSON and the values compared, whose types count (`compare: json`).
    Source: none needed; the comparison is stated above in full.
    """

    config: Config

    class Config(RewardConfig):
        compare: Literal["text", "json"] = Field(
            "text", description="compare the texts, or the JSON values they hold"
        )

    def __call__(self, attempt: Attempt) -> float:
        equal = same_json if self.config.compare == "json" else same_text
        return float(equal(attempt.output, attempt.reference))

    def check(self, reference: str, limit: int) -> None:
        if self.config.compare == "json":
            check_json(reference)
