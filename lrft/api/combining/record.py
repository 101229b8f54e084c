"""What `lrft combine` is asked, and what its certificate holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrft.export.fidelity import Compared
from lrft.export.pairs import SiteRecord
from lrft.registry.json import Json


@dataclass(frozen=True)
class Settings:
    """What was asked beside parents and method; None where nothing was said.

    Attributes:
        set: settings of the method.
        weights: one a parent.
        rank, error: of the written factors, as of `lrft export`.
        recipe: says base and data where no parent is a run.
        seed: of what is drawn.
        evaluate: score the result beside its parents and the base.
        limit: rows of a task at most.
        curve: points of the line between two parents, or from the base to one, that are scored; 0 for none.
    """

    set: Mapping[str, object] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    rank: int | None = None
    error: float | None = None
    recipe: Path | str | None = None
    seed: int = 0
    evaluate: bool = False
    limit: int | None = None
    curve: int = 0


class Combined(Compared, total=False):
    """How a combination was made, and how what was written compares with it.

    `relative_error` is that of all layers together in Frobenius norm, of the factors before they reach the file;
    `kl_mean` and its like compare the file with the uncut combination, on rows of the recipe.
    """

    combination: str
    settings: Mapping[str, Json]
    weights: list[float] | None
    seed: int
    parents: list[dict[str, Json]]
    rank: int
    relative_error: float
    exact_sites: int
    sites: dict[str, SiteRecord]
    found: dict[str, float]
    told: list[str]
    scores: dict[str, dict[str, dict[str, float]]]
    curve: list[dict[str, float]]
