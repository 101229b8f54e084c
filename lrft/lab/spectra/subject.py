"""`Subject`: what is inspected, its changes one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lrft.lab.spectra.measure import SiteChange


@dataclass(frozen=True)
class Subject:
    """A run or a folder that PEFT wrote.

    Attributes:
        of: the folder.
        step: of a run's checkpoint, else None.
        base: the base model's name, None where its weights are not read.
        left_out: what changed and is no weight of a linear map -> why it is not looked at.
        count: how many `changes` there are; each is made when it is asked for.
    """

    of: str
    kind: Literal["run", "peft"]
    step: int | None
    method: str
    base: str | None
    left_out: dict[str, str]
    count: int
    changes: Iterable[SiteChange]
