"""A search as plain values."""

from __future__ import annotations

from typing import TypedDict

from lrft.registry.json import Json


class Row(TypedDict):
    """An arm as `lrft.lab.search.state.Line` has it, and the costs on whose front it stands."""

    arm: int
    label: str
    genes: list[int | float]
    values: dict[str, Json]
    failure: str | None
    score: float | None
    loss: float | None
    eval_loss: float | None
    trainable: int
    bytes: int
    step_seconds: float | None
    seconds: float | None
    run: str
    front: list[str]


class Found(TypedDict):
    """A whole search; `rows` begin with the best.

    Attributes:
        best: its arm; None where no arm has a score.
        refused: how many configurations were no valid recipe, or that of another one.
        refusal: what one of them was refused for.
        exhausted: there was no other configuration, so the budget is not used up.
    """

    command: str
    recipe: str
    method: dict[str, Json]
    metric: str
    higher: bool
    against: str
    seed: int
    budget: int
    keys: list[str]
    best: int | None
    best_recipe: str | None
    refused: int
    refusal: str | None
    exhausted: bool
    rows: list[Row]
