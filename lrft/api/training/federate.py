"""`lrft federate`: a recipe trained by clients, from the start or from the last round; or who would hold which rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lrft.api.training.recorded import to_train
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.rounds import MakeReach
from lrft.build.shares import labels_of, shares_of, tell
from lrft.build.text import check_text
from lrft.core.notes import say
from lrft.recipe.load import LoadedRecipe
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json


class Held(TypedDict):
    """What one client would hold: how many rows, and of every label, or class by length, how many."""

    client: int
    rows: int
    labels: dict[str, int]


class Shared(TypedDict):
    """Who would hold which rows."""

    recipe: str
    rounds: int
    chosen: int
    clients: list[Held]


def federate(
    recipe: LoadedRecipe | Path | str,
    out: Path | str | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
    reach: MakeReach | None = None,
) -> dict[str, Json]:
    """Train a recipe by the clients of its `federate` section; as `lrft.api.training.train.train`, of rounds.

    Args:
        reach: makes what reaches the clients; by default they train here in turn.

    Raises:
        RecipeError: the recipe has no such section.
    """
    loaded = _federated(to_train(recipe, overrides, resume))
    return train(loaded, out, resume, trust_remote_code, reach=reach)


def share(
    recipe: LoadedRecipe | Path | str, trust_remote_code: bool = False, *, overrides: Sequence[str] = ()
) -> Shared:
    """Read the rows and share them; no weights are loaded, and nothing is written.

    Raises:
        RecipeError: the recipe has no `federate` section.
        DataError: the rows cannot be shared so.
    """
    loaded = with_format(_federated(to_train(recipe, overrides)))
    asked = loaded.recipe.federate
    assert asked is not None, "looked at"
    text = read_text(loaded.recipe, trust_remote_code=trust_remote_code)
    check_text(text, loaded.recipe)
    shares = shares_of(loaded.recipe, text)
    for sentence in tell(loaded.recipe, text, shares):
        say(sentence)
    every = sorted(index for part in shares for index in part)
    label = dict(zip(every, labels_of(asked, text, every), strict=True))
    held: list[Held] = [
        {
            "client": k,
            "rows": len(part),
            "labels": dict(sorted(Counter(label[index] for index in part).items())),
        }
        for k, part in enumerate(shares)
    ]
    return {"recipe": loaded.name, "rounds": asked.rounds, "chosen": asked.chosen, "clients": held}


def _federated(loaded: LoadedRecipe) -> LoadedRecipe:
    if loaded.recipe.federate is None:
        raise RecipeError(
            "is missing; write how many clients and rounds: {clients: 5, rounds: 10}", "federate"
        )
    return loaded
