"""The matrices of a model's blocks in mixed bits: against their inputs, one block after the other, or to nearest."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.evaluation.progress import EvaluationBar
from lrft.export.delta import Deltas
from lrft.export.feedback import moments
from lrft.export.mixed_bits import Groups, Vectors, budget, compress
from lrft.model.base_infos import BLOCK
from lrft.model.causal_lm import CausalLM
from lrft.model.in_turn import InTurn
from lrft.model.sites import is_transposed, linear_sites


@dataclass
class Calibration:
    """The base on which rows are measured; without any, layers are rounded to nearest.

    Attributes:
        model: the tuned one in float32, which becomes the compressed one block by block.
    """

    model: CausalLM
    rows: int
    batches: list[Batch]
    held_out: list[Batch]
    objective: Objective


@dataclass
class Found:
    """The layers that were compressed, by the name of their weight."""

    groups: dict[str, list[Vectors]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    lost: float = 0.0
    total: float = 0.0

    def add(self, name: str, groups: list[Vectors], change: Tensor) -> Tensor:
        """Keep one; returns what it decodes to, as the model stores it."""
        decoded = torch.zeros_like(change)
        for one in groups:
            decoded += one.dense()
        lost, total = float((decoded - change).square().sum()), float(change.square().sum())
        self.groups[name], self.errors[name] = groups, (lost / total) ** 0.5
        self.lost, self.total = self.lost + lost, self.total + total
        return decoded


def to_nearest(deltas: Deltas, ratio: float, groups: Groups | None) -> Found:
    """Every matrix within a block, without any inputs."""
    found = Found()
    with EvaluationBar() as show:
        names = [name for name, tensor in deltas.items() if _is_of_block(name, tensor)]
        for name in names:
            stop.poll()
            change = deltas[name]
            wanted = groups or budget(change.shape[0], change.shape[1], ratio)
            if wanted:
                found.add(name, compress(change, wanted), change)
            show("layers", len(found.groups), len(names))
    return found


@torch.no_grad()
def in_turn(at: Calibration, deltas: Deltas, ratio: float, groups: Groups | None) -> Found:
    """The same against the inputs that layers have behind blocks which are compressed already."""
    found, blocks = Found(), dict[str, list[str]]()
    sites = linear_sites(at.model)
    for name in sites:
        inside = BLOCK.match(f"{name}.")
        plain = not is_transposed(at.model.hf.get_submodule(name))
        if inside and plain and _is_of_block(f"{name}.weight", deltas.get(f"{name}.weight", torch.empty(0))):
            blocks.setdefault(inside.group(1), []).append(name)
    turn = InTurn(at.model, list(blocks), at.batches)
    for place, names in enumerate(blocks.values()):
        with turn.only(place) as measured:
            inputs = moments(at.model, [sites[name] for name in names], measured, at.objective)
        for name in names:
            stop.poll()
            change = deltas[f"{name}.weight"]
            wanted = groups or budget(change.shape[0], change.shape[1], ratio)
            if wanted:
                one = compress(change, wanted, inputs.get(name))
                decoded = found.add(f"{name}.weight", one, change)
                weight = at.model.hf.get_submodule(name).get_parameter("weight")
                weight.add_((decoded - change).to(weight.device))
        turn.advance(place)
    return found


def _is_of_block(name: str, change: Tensor) -> bool:
    return change.ndim == 2 and BLOCK.match(name) is not None and bool(change.any())
