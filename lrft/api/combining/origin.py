"""How an adapter came to be that nobody trained, for its run.json and its README."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrft.api.combining.record import Combined
from lrft.registry.json import Json

CARD = """
{method} of {count} adapters, made by `lrft combine` without training: {parents}.

- rank: {rank} at most; relative error of the cut to it: {error:.3g}

All figures are in `fidelity.json`.
"""


@dataclass(frozen=True)
class Origin:
    """How an adapter came to be that nobody trained.

    Attributes:
        key: of `record` in run.json.
        record: what it is from.
        card: the text of its README.
    """

    key: str
    record: Mapping[str, Json]
    card: str


def origin_of(record: Combined) -> Origin:
    """That of a combination."""
    parents = ", ".join(str(parent["name"]) for parent in record["parents"])
    card = CARD.format(
        method=record["combination"],
        count=len(record["parents"]),
        parents=parents,
        rank=record["rank"],
        error=record["relative_error"],
    )
    about: dict[str, Json] = {
        "combination": record["combination"],
        "settings": dict(record["settings"]),
        "weights": None if record["weights"] is None else list(record["weights"]),
        "seed": record["seed"],
        "parents": list(record["parents"]),
    }
    return Origin("combined", about, card)
