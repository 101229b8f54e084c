"""What `lrft inspect` says: one record a site, and what holds for all."""

from __future__ import annotations

from typing import Literal, TypedDict

FORMAT = 1


class Angles(TypedDict):
    """How the change's leading directions lie to those of the base, on one side of the weight.

    Attributes:
        degrees: principal angles, ascending.
        overlap: mean squared cosine of them, 1 where the two subspaces are one.
        chance: what `overlap` is on average where the change's directions are drawn at random.
    """

    degrees: list[float]
    overlap: float
    chance: float


class Intruders(TypedDict):
    """Leading directions of the trained weight that are unlike any of the base.

    Attributes:
        count: those whose likeness is below the threshold.
        likeness: of each leading direction, the largest first, its largest |cosine| with any direction of the base.
    """

    count: int
    likeness: list[float]


class SiteRecord(TypedDict):
    """The change of one site.

    Attributes:
        layer: number of the block, None outside of them; `module` is the path within it.
        shape: (out, in).
        allocated: rank components the adapter has there, None where the method has no rank.
        rank: singular values above float32's rounding of the largest.
        rank_99: how many of them hold 99 % of the squared norm.
        rank_entropy: exp of the entropy of their shares.
        rank_stable: squared Frobenius norm over squared largest.
        norm: |dW|; `weight_norm` |W|, Frobenius; `relative` |dW| / |W|. Those that need W are None without it.
        values: singular values of dW, the largest first, at most `KEPT`.
        output, input: left and right singular vectors beside the base's; None without W, or where nothing changed.
    """

    site: str
    layer: int | None
    module: str
    shape: list[int]
    allocated: int | None
    rank: int
    rank_99: int
    rank_entropy: float
    rank_stable: float
    norm: float
    weight_norm: float | None
    relative: float | None
    values: list[float]
    output: Angles | None
    input: Angles | None
    intruders: Intruders | None


class Inspection(TypedDict):
    """What was inspected and what was found.

    Attributes:
        of: the folder; `kind` what it is; `step` the checkpoint of a run.
        base: the base model, None where its weights were not read.
        top: directions that angles and intruders look at; `below` the largest likeness of an intruder.
        relative: |dW| / |W| over all sites.
        intruders: over all sites.
        left_out: what changed and is not looked at -> why.
    """

    format: int
    of: str
    kind: Literal["run", "peft"]
    step: int | None
    method: str
    base: str | None
    top: int
    below: float
    relative: float | None
    intruders: int | None
    left_out: dict[str, str]
    sites: list[SiteRecord]
