"""A reward of another package."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import entry_points

from lrft.core.reward import Attempt, Reward
from lrft.registry.axes import REWARDS
from lrft.registry.config import Field, RewardConfig
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import DataError, RecipeError

GROUP = "lrft.rewards"


@REWARDS.register
class EntryPoint(Reward):
    """What a function says that another installed package has under the entry point `lrft.rewards`.

        r = f(attempt)

    Score: f is the function registered there as `function`; it is given the attempt (`lrft.core.reward.Attempt`:
    output, written, reference, tokens, stopped, limit, row) and returns a finite number. It has to say the same of the
    same attempt, or a resumed run is another one.
    Source: none needed; the function is the user's.
    """

    provides = {"ranks"}

    config: Config

    class Config(RewardConfig):
        function: str = Field(min_length=1, description="name of the entry point")

    def __call__(self, attempt: Attempt) -> float:
        """Its number.

        Raises:
            DataError: it gave something else.
        """
        found = self._function(attempt)
        if isinstance(found, bool | int | float) and math.isfinite(found):
            return float(found)
        raise DataError(
            f"objective.rewards: {self.config.function} gave {found!r} for an answer; return a finite number"
        )

    def check(self, reference: str, limit: int) -> None:
        """Load it.

        Raises:
            RecipeError: no package has it, or it cannot be loaded.
        """
        assert callable(self._function)

    @cached_property
    def _function(self) -> Callable[[Attempt], object]:
        known = entry_points(group=GROUP)
        found = [one for one in known if one.name == self.config.function]
        if not found:
            names = listed(sorted({one.name for one in known}), "and") if known else "none"
            raise RecipeError(
                f"no installed package has {self.config.function!r} among its entry points {GROUP}; there is {names}",
                "objective.rewards",
            )
        if len(found) > 1:
            raise RecipeError(
                f"several packages have {self.config.function!r} among their entry points {GROUP} "
                f"({', '.join(one.value for one in found)}); rename one",
                "objective.rewards",
            )
        try:
            function = found[0].load()
        except Exception as error:  # whatever the package's own code raises
            raise RecipeError(
                f"{found[0].value} cannot be loaded ({error}); mend it", "objective.rewards"
            ) from error
        if not callable(function):
            raise RecipeError(f"{found[0].value} is no function; name one", "objective.rewards")
        checked: Callable[[Attempt], object] = function
        return checked
