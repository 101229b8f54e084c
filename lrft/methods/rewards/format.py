"""The answer has a form."""

from __future__ import annotations

import re

from lrft.core.reward import Attempt, Reward
from lrft.registry.axes import REWARDS
from lrft.registry.config import Field, RewardConfig, model_validator
from lrft.registry.json import parse_text
from lrft.registry.pattern_cost import check_pattern


@REWARDS.register
class Format(Reward):
    """1 where the whole text of an answer has a form, else 0.

        r = [`pattern` matches strip(written)]

    Score: all that was written counts, thoughts included, without white space at both ends. `pattern` is a regular
    expression of Python, in which a dot is any character, that matches the whole text; by default the text has to be
    one JSON value. One that could take long on a long text is refused (`lrft.registry.pattern_cost`).
    Source: the format reward of DeepSeek-AI, "DeepSeek-R1", 2025, arXiv 2501.12948, which asks for tags.
    """

    provides = {"ranks"}

    config: Config

    class Config(RewardConfig):
        pattern: str | None = Field(
            None, description="regular expression that matches the whole text; by default it is a JSON value"
        )

        @model_validator(mode="after")
        def _check_pattern(self) -> Format.Config:
            check_pattern(self.pattern or "", re.DOTALL)  # it is run on whatever a model writes
            return self

    def __call__(self, attempt: Attempt) -> float:
        text = attempt.written.strip()
        if self.config.pattern is not None:
            return float(re.fullmatch(self.config.pattern, text, re.DOTALL) is not None)
        try:
            parse_text(text)
        except ValueError:
            return 0.0
        return 1.0
