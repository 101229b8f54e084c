"""The answer does not run into its limit."""

from __future__ import annotations

from lrft.core.reward import Attempt, Reward
from lrft.registry.axes import REWARDS
from lrft.registry.config import Field, RewardConfig
from lrft.registry.errors import RecipeError


@REWARDS.register
class Length(Reward):
    """0 for an answer well within the limit, falling to -1 for one that reaches it.

        r = min(0, max(-1, (L - `margin` - n) / `margin`))

    Score: n is the number of tokens drawn, what ended the answer included, L is `max_new_tokens` of the objective. From
    L - `margin` tokens on every token more costs the same.
    Source: Yu et al., "DAPO", 2025, arXiv 2503.14476, equation 13, where L is 20480 and `margin` a fifth of it.
    Departures: an answer that ends by itself at the limit costs as much as one that was cut there.
    """

    config: Config

    class Config(RewardConfig):
        margin: int | None = Field(
            None,
            gt=0,
            description="tokens before the limit in which the reward falls; by default a fifth of it",
        )

    def __call__(self, attempt: Attempt) -> float:
        margin = self._margin(attempt.limit)
        return min(0.0, max(-1.0, (attempt.limit - margin - attempt.tokens) / margin))

    def check(self, reference: str, limit: int) -> None:
        if self._margin(limit) > limit:
            message = f"length has a margin of {self.config.margin} tokens, more than an answer's {limit}; write less"
            raise RecipeError(message, "objective.rewards")

    def _margin(self, limit: int) -> int:
        return self.config.margin or max(1, limit // 5)
