"""What building a recipe's model gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrft.core.stages import Plan
from lrft.core.team import ALONE, Team
from lrft.model.causal_lm import CausalLM
from lrft.model.matrices import Matrices
from lrft.model.sites import TargetRow
from lrft.registry.json import Json


@dataclass
class Adaptation:
    """A base model with a recipe's adapter on it, and how it came about; `notes` are for the user.

    Attributes:
        packing: rows hold several documents.
        joined: the rows of a micro-batch are one row, without padding.
        recomputed: layers that are computed again in the backward pass.
        team: the processes of this launch, which go in step where each keeps a part of the base.
        origin: the adapter that a new training begins with (`model.adapter`), for its record.
    """

    model: CausalLM
    plan: Plan
    targets: list[TargetRow]
    matrices: Matrices
    packing: bool = True
    joined: bool = False
    recomputed: int = 0
    undecided: bool = False  # a planner that looks at weights or data has not been asked
    notes: list[str] = field(default_factory=list)
    team: Team = ALONE
    origin: dict[str, Json] | None = None
