"""`Analysis`: a look at a run that changes nothing of it, and what it may look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from torch import Tensor

from lrft.core.callback import TimedMethod
from lrft.registry.config import MethodConfig
from lrft.registry.errors import RecipeError

if TYPE_CHECKING:
    from lrft.core.run import Run

Found = dict[str, float] | float
DIGITS = 7  # significant digits that are kept: what float32 holds


@dataclass(frozen=True)
class Change:
    """One linear layer and what training made of it, both (out, in) float32.

    Attributes:
        site: path of the layer.
        before: its weight before any training, as it is stored (decoded where it is quantized).
        change: what was added since. Computed as such, not as a difference of two rounded sums.
    """

    site: str
    before: Tensor
    change: Tensor


class Weights(Protocol):
    """The linear layers of a run that train or have an adapter that is a change of the weight, one at a time."""

    def names(self) -> list[str]:
        """Paths of these layers."""

    def changes(self) -> Iterator[Change]:
        """Every such layer as it is now."""

    def originals(self) -> Iterator[tuple[str, Tensor]]:
        """Path and weight (out, in) as the model's files have it, float32, before it was rounded into any storage."""


def changed(run: Run) -> Weights:
    """The run's weights, for an analysis of what training adds to them.

    Raises:
        RecipeError: nothing that trains is a change of a weight, so that there would be nothing to find.
    """
    assert run.weights is not None, "a run that is analysed has weights"
    if not run.weights.names():
        message = (
            "looks at what is added to weights, and nothing here is: the adapter is no change of a weight"
        )
        raise RecipeError(f"{message}; leave the analysis out, or choose an adapter that merges", "analyse")
    return run.weights


class State(TypedDict):
    """What a resume needs of an analysis."""

    found: dict[str, Found]


class Analysis(TimedMethod):
    """A callback that only looks. What it finds stands in result.json under `analysis.NAME`.

    Every finding is a number, or a number for each key (a site, a step, a rank). A run with analyses has the losses
    and the bytes of the run without them; a contract test holds them to it.
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.found: dict[str, Found] = {}

    def note(self, **found: Found) -> None:
        """Keep numbers under their names; keyed numbers are added to those already there."""
        for name, value in found.items():
            if not isinstance(value, dict):
                self.found[name] = _short(value)
                continue
            kept = self.found.setdefault(name, {})
            assert isinstance(kept, dict), f"{name} is a number already"
            kept.update({key: _short(number) for key, number in value.items()})

    def finish(self, run: Run) -> None:
        run.summary.setdefault("analysis", {})[self.name] = self.found

    def state_dict(self) -> State:
        return {"found": self.found}

    def load_state_dict(self, state: State) -> None:
        self.found = state["found"]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
