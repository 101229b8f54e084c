"""The matrices of a model's blocks in mixed bits: against their inputs, one block after the other, or to nearest."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.in_layer import in_layer
from lrft.core.objective import Objective
from lrft.evaluation.progress import EvaluationBar
from lrft.export.delta import held_of
from lrft.export.delta_held import Held
from lrft.export.feedback import moments
from lrft.export.mixed_bits import Groups, budget, compress
from lrft.files.tensors_written import Gathered
from lrft.model.causal_lm import CausalLM
from lrft.model.in_turn import InTurn
from lrft.model.layout import gather
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
    """What became of the layers that were compressed, by the name of their weight; they themselves are gathered.

    Attributes:
        groups: bits and columns.
        errors: relative ones.
        size, whole: bytes that they take, and that they would in 16 bits.
    """

    gathered: Gathered
    groups: dict[str, list[list[int]]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    lost: float = 0.0
    total: float = 0.0
    size: int = 0
    whole: int = 0

    def add(self, name: str, change: Tensor, wanted: Groups, moment: Tensor | None) -> Tensor:
        """Compress one and put it away; returns what it decodes to, as the model stores it."""
        groups, decoded = compress(change, wanted, moment), torch.zeros_like(change)
        for one in groups:
            decoded += one.dense()
        for key, tensor in held_of(name, groups).items():
            gather(self.gathered, key, tensor)
            self.size += tensor.numel() * tensor.itemsize
        lost, total = float((decoded - change).square().sum()), float(change.square().sum())
        self.groups[name], self.errors[name] = (
            [[one.bits, len(one.S)] for one in groups],
            (lost / total) ** 0.5,
        )
        self.lost, self.total = self.lost + lost, self.total + total
        self.whole += change.numel() * 2
        return decoded


def to_nearest(held: Held, found: Found, ratio: float, groups: Groups | None) -> None:
    """Every matrix within a block, without any inputs."""
    names = [name for name in held if _is_of_block(held, name)]
    with EvaluationBar(unit="layers") as show:
        for name in names:
            stop.poll()
            if wanted := groups or _budget(held, name, ratio):
                found.add(name, held[name], wanted, None)
            show("layers", len(found.groups), len(names))


@torch.no_grad()
def in_turn(at: Calibration, held: Held, found: Found, ratio: float, groups: Groups | None) -> None:
    """The same against the inputs that layers have behind blocks which are compressed already."""
    blocks = dict[str, list[str]]()
    sites = linear_sites(at.model)
    for name in sites:
        inside = in_layer(name)
        plain = not is_transposed(at.model.hf.get_submodule(name))
        if inside and plain and _is_of_block(held, f"{name}.weight"):
            blocks.setdefault(inside.path, []).append(name)
    turn = InTurn(at.model, list(blocks), at.batches)
    with EvaluationBar(unit="blocks") as show:
        for place, names in enumerate(blocks.values()):
            with turn.only(place) as measured:
                inputs = moments(at.model, [sites[name] for name in names], measured, at.objective)
            for name in names:
                stop.poll()
                if wanted := groups or _budget(held, f"{name}.weight", ratio):
                    _compress(at.model, held, name, found, wanted, inputs.get(name))
            turn.advance(place)
            show("blocks", place + 1, len(blocks))


def _compress(
    model: CausalLM, held: Held, name: str, found: Found, wanted: Groups, moment: Tensor | None
) -> None:
    """One layer, whose weight becomes what the base and the compressed change give."""
    change = held[f"{name}.weight"]
    decoded = found.add(f"{name}.weight", change, wanted, moment)
    weight = model.hf.get_submodule(name).get_parameter("weight")
    weight.add_((decoded - change).to(weight.device))


def _budget(held: Held, name: str, ratio: float) -> Groups:
    out_features, in_features = held.shapes[name]
    return budget(out_features, in_features, ratio)


def _is_of_block(held: Held, name: str) -> bool:
    """Whether it is a matrix of a block that changed; it is read, and let go, only where that is still to be seen."""
    is_matrix = name in held and in_layer(name) is not None and len(held.shapes[name]) == 2
    return is_matrix and bool(held[name].any())
