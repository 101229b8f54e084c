"""HetLoRA: clients of different ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from lrft.core.aggregate import Aggregator, Federation, Reply, Tensors, Turn
from lrft.core.params import ParamInfo
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, Literal, MethodConfig


@AGGREGATORS.register
class HetLoRA(Aggregator):
    """Heterogeneous LoRA: a client trains as many of the leading components as it can bear; averages are padded.

        down: A[:r_k], B[:, :r_k]           client k has the rank r_k
        A <- sum_k p_k [A_k; 0],  B <- sum_k p_k [B_k, 0]
        p_k = ||B_k A_k||_F / sum_j ||B_j A_j||_F

    with r_k = `ranks`[k mod its length], the norm over all sites together (sparsity-weighted, `weights: norm`), or p_k
    by rows or alike. All clients multiply by the s of the adapter's own rank r, so that a component means the same
    everywhere.

    Shapes: A (r, in), B (out, r) on the server; A_k (r_k, in), B_k (out, r_k).
    Bytes: 4 r_k (in + out) per site, up and down, for each client and round.
    State: none.
    Source: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", 2024, arXiv
    2401.06432.
    Departures: no client prunes its own rank. Simulated, a client holds the components beyond its rank as zeros, which
    no gradient moves; that they stayed zero is looked at.
    """

    requires = {"low_rank", "trained_pair"}

    class Config(MethodConfig):
        ranks: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
            min_length=1,
            description="of the clients in turn, none above the adapter's; after the last the first again",
        )
        weights: Literal["norm", "examples", "equal"] = Field(
            "norm", description="a client counts by the size of its change, by its rows, or as every other"
        )

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        super().__init__(config, federation, parameters)
        self.axes = {name: axis for a, b, _ in self.pairs() for axis, name in enumerate((a, b))}
        odd = [info.name for info in parameters if info.name not in self.axes]
        if odd:
            raise ValueError(f"cuts pairs A, B to a rank, and {odd[0]} is of none; train LoRA alone")
        least = min(info.param.shape[self.axes[info.name]] for info in parameters)
        if max(self.config.ranks) > least:
            raise ValueError(
                f"a client of rank {max(self.config.ranks)} cannot train an adapter of rank {least}"
            )

    def down(self, held: Mapping[str, Tensor], turn: Turn) -> Tensors:
        rank = self._rank(turn.client)
        return {name: value.narrow(self.axes[name], 0, rank).clone() for name, value in held.items()}

    def taken(self, message: Mapping[str, Tensor], before: Mapping[str, Tensor], turn: Turn) -> Tensors:
        return {info.name: self._padded(info, message[info.name]) for info in self.parameters}

    def up(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], turn: Turn) -> Tensors:
        rank = self._rank(turn.client)
        for name, value in trained.items():
            axis = self.axes[name]
            if value.narrow(axis, rank, value.shape[axis] - rank).any():
                raise ValueError(
                    f"{name}: this optimizer moves components that client {turn.client}, of rank {rank}, does not have"
                )
        return self.down(trained, turn)

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        found = {
            info.name: torch.zeros_like(held[info.name], dtype=torch.float32) for info in self.parameters
        }
        for reply, share in zip(replies, self.shares(replies), strict=True):
            for info in self.parameters:
                found[info.name] += share * self._padded(info, reply.message[info.name]).float()
        return found

    def shares(self, replies: Sequence[Reply]) -> list[float]:
        if self.config.weights != "norm":
            return super().shares(replies)
        norms = [self._norm(reply) for reply in replies]
        return [norm / sum(norms) for norm in norms] if sum(norms) else [1 / len(replies)] * len(replies)

    def _norm(self, reply: Reply) -> float:
        square = 0.0
        for a, b, _ in self.pairs():
            A, B = reply.message[a].double(), reply.message[b].double()
            square += float(((B.T @ B) * (A @ A.T)).sum())
        return math.sqrt(max(square, 0.0))

    def _rank(self, client: int) -> int:
        ranks: list[int] = self.config.ranks
        return ranks[client % len(ranks)]

    def _padded(self, info: ParamInfo, value: Tensor) -> Tensor:
        whole = torch.zeros(info.param.shape, dtype=value.dtype, device=value.device)
        whole.narrow(self.axes[info.name], 0, value.shape[self.axes[info.name]]).copy_(value)
        return whole
