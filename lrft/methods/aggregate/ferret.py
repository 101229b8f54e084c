"""Ferret: updates travel as coordinates along directions that everybody draws from shared seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from random import Random

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from lrft.core.aggregate import Aggregator, Federation, Reply, Tensors, Turn, check_alike, check_tensors
from lrft.core.params import ParamInfo
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, Literal, MethodConfig

LARGEST_SEED = 10**11
COORDINATES, COUNTS = "coordinates", "counts"


@AGGREGATORS.register
class Ferret(Aggregator):
    """Updates are projected on random directions of shared seeds, and everybody rebuilds their average.

        D_g   = theta_g - theta_kg                                    (update of group g, d_g numbers)
        m_g   = max(2, floor(K ||D_g|| / max_g ||D_g||))              directions drawn from the K without replacement
        c_j   = d_g / m_g <D_g, v_j>,  v_j ~ N(0, 1) truncated to +-1/sqrt(d_g), from seed j
        C     <- `momentum` C + sum_k p_k c_k
        theta_g <- theta_g - lr min(1, `clip` / |C_j| ||v_j||) C_j v_j,  for j = 1..K one after the other

    with K = `seeds`, the same for the whole run, lr = `lr`. Parameters are grouped in their order while a group has at
    most 0.9 of the median number of a tensor. <D, v_j> v_j summed is D / 3 d_g on average, as v is nearly uniform, so a
    rate of 3 rebuilds D without bias and a large variance: the cosine to D is sqrt(m / (m + d)).

    Shapes: theta as it trains; coordinates, one number for each direction used of each group.
    Bytes: up 4 sum_g m_g, at most 4 K a group, and 4 a group; down 4 K a group, to every client, as all keep the model.
    State: K coordinates a group.
    Source: Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", 2024, arXiv
    2409.06277, and the authors' code, whose grouping, draws, factor d / m, clipping and defaults these are.
    Departures: seeds and choices follow from train.seed, the client and the round, so that those used need not be sent;
    directions are drawn on the CPU, as other devices draw other numbers; coordinates are float32 (theirs half
    precision). An update that is not finite is refused, where the authors send two coordinates of it.
    Advice: `trainable: full` with `adapter: null` as published, and `optimizer: sgd`; it takes adapters too.
    """

    to_all = True

    class Config(MethodConfig):
        seeds: int = Field(200, gt=1, le=100_000, description="K, directions that there are")
        lr: float = Field(10.0, gt=0, description="rate of the server")
        momentum: float = Field(0.0, ge=0, lt=1, description="of the averaged coordinates")
        clip: float = Field(10.0, gt=0, description="largest norm of one direction's part of an update")
        weights: Literal["examples", "equal"] = Field(
            "equal", description="a client counts as often as it has rows, or as often as every other"
        )

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        super().__init__(config, federation, parameters)
        self.groups = group([(info.name, info.param.numel()) for info in parameters])
        draw = Random(f"{federation.seed} directions")
        self.seeds = [draw.randrange(1, LARGEST_SEED) for _ in range(self.config.seeds)]
        self.pool = torch.zeros(len(self.groups), self.config.seeds)

    def down(self, held: Mapping[str, Tensor], turn: Turn) -> Tensors:
        return {COORDINATES: self.pool}

    def taken(self, message: Mapping[str, Tensor], before: Mapping[str, Tensor], turn: Turn) -> Tensors:
        found: Tensors = {}
        for place, names in enumerate(self.groups):
            flat = torch.cat([before[name].float().flatten() for name in names])
            moved = self._moved(flat, message[COORDINATES][place])
            sizes = [before[name].numel() for name in names]
            for name, part in zip(names, moved.split(sizes), strict=True):
                found[name] = part.view_as(before[name])
        return found

    def up(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], turn: Turn) -> Tensors:
        norms = [float(_update(start, trained, names).norm()) for names in self.groups]
        if not all(torch.tensor(norms).isfinite()):
            raise ValueError(f"client {turn.client} trained to numbers that are not finite")
        largest = max(1e-8, *norms)
        found: list[Tensor] = []
        counts: list[int] = []
        for names, norm, chosen in zip(self.groups, norms, self._choices(turn), strict=True):
            count = max(int(norm / largest * self.config.seeds), 2)
            seeds = [self.seeds[k] for k in chosen[:count]]
            found.append(project(_update(start, trained, names), seeds))
            counts.append(count)
        return {COORDINATES: torch.cat(found), COUNTS: torch.tensor(counts, dtype=torch.int32)}

    def check(self, held: Mapping[str, Tensor], reply: Reply, round: int) -> None:
        groups = torch.zeros(len(self.groups), dtype=torch.int32)
        check_alike(reply, {COORDINATES: torch.zeros(0), COUNTS: groups}, shapes=False)
        values, counts = reply.message[COORDINATES], reply.message[COUNTS]
        fits = counts.shape == groups.shape and values.shape == (int(counts.sum()),)
        if not fits or not ((counts >= 2) & (counts <= len(self.seeds))).all():
            raise ValueError(f"its {values.numel()} coordinates are not 2 to {len(self.seeds)} of each group")

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        self.pool = self.pool * self.config.momentum
        for reply, share in zip(replies, self.shares(replies), strict=True):
            self.pool += share * self._spread(reply, round)
        turn = Turn(-1, round)
        return self.taken(self.down(held, turn), held, turn)

    def _choices(self, turn: Turn) -> Iterator[list[int]]:
        """Of each group all directions, in the order in which this client uses them in this round."""
        draw = Random(f"{self.federation.seed} {turn.client} {turn.round}")
        return (draw.sample(range(len(self.seeds)), len(self.seeds)) for _ in self.groups)

    def _spread(self, reply: Reply, round: int) -> Tensor:
        """The coordinates of a reply at their places, 0 where a direction was not used: (groups, K)."""
        found = torch.zeros_like(self.pool)
        parts = reply.message[COORDINATES].cpu().split(reply.message[COUNTS].tolist())
        for row, part, chosen in zip(found, parts, self._choices(Turn(reply.client, round)), strict=True):
            row[torch.tensor(chosen[: len(part)])] = part
        return found

    def _moved(self, flat: Tensor, coordinates: Tensor) -> Tensor:
        for seed, coordinate in zip(self.seeds, coordinates.tolist(), strict=True):
            if coordinate:
                part = coordinate * direction(seed, flat.numel()).to(flat.device)
                shrink = min(1.0, self.config.clip / (float(part.norm()) + 1e-8))
                flat = flat - self.config.lr * shrink * part
        return flat

    def state_dict(self) -> StateDict:
        return {"pool": self.pool}

    def load_state_dict(self, state: StateDict) -> None:
        check_tensors(dict(state), {"pool": self.pool})
        self.pool = state["pool"]


def group(sizes: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Names in their order, in groups of at most 0.9 of the median size, or of one."""
    most = int(0.9 * statistics.median(size for _, size in sizes))
    groups: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if not groups or filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def direction(seed: int, size: int) -> Tensor:
    """V of a seed: (size,) float32 on the CPU, normal truncated to +-1/sqrt(size)."""
    bound = size**-0.5
    drawn = torch.empty(size)
    nn.init.trunc_normal_(drawn, 0.0, 1.0, -bound, bound, torch.Generator().manual_seed(seed))
    return drawn


def project(update: Tensor, seeds: Sequence[int]) -> Tensor:
    """D / m <D, v_j> of each seed: (d,) -> (m,)."""
    flat = update.cpu()
    found = torch.stack([torch.sum(flat * direction(seed, len(flat))) for seed in seeds])
    return found * (len(flat) / len(seeds))


def _update(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([(start[name].float() - trained[name].float()).flatten() for name in names])
