"""FedStale: the last update of clients that are absent counts too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.aggregate import Aggregator, Federation, Reply, Tensors, check_tensors
from lrft.core.params import ParamInfo
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, MethodConfig


@AGGREGATORS.register
class FedStale(Aggregator):
    """FedStale: updates of the clients that took part, beside the last known ones of all.

        D_i   = theta - theta_i
        g     = 1/N sum_{i in S} (D_i - beta h_i) / q + beta/N sum_{i=1..N} h_i
        theta <- theta - lr g,  then h_i <- D_i for i in S

    with S the clients of the round, N all of them, q = |S| / N the chance of each to be drawn, `beta`, `lr`, and h_i
    the last update of client i, 0 before its first. `beta` 0 is FedAvg over equal clients, 1 is FedVARP, and what is
    between is their mixture; where all take part, beta changes nothing.

    Shapes: D_i, h_i, g as theta trains.
    Bytes: everything that trains, up and down, for each client and round.
    State: N copies of everything that trains, on the server.
    Source: Rodio and Neglia, "FedStale: leveraging stale client updates in federated learning", 2024, arXiv 2405.04171.
    Departures: chances to be drawn are equal and known, as this driver draws; the paper also has unequal ones. Its rule
    for choosing beta was not to be had: a smaller one suits clients that are alike. settled here: 0.5, which later
    comparisons use.
    Advice: with `adapter: lora_fa` or `lora_xs` what is remembered is linear in the change of the weights.
    """

    class Config(MethodConfig):
        beta: float = Field(0.5, ge=0, le=1, description="how much the last known updates count")
        lr: float = Field(1.0, gt=0, description="rate of the server")

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        super().__init__(config, federation, parameters)
        self.memory: dict[int, Tensors] = {}

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        beta, total = self.config.beta, self.federation.clients
        chance = len(replies) / total
        updates = {r.client: {n: held[n].float() - r.message[n].float() for n in held} for r in replies}
        found: Tensors = {}
        for name, value in held.items():
            step = torch.zeros_like(value, dtype=torch.float32)
            for client, update in updates.items():
                fresh = update[name]
                if client in self.memory:
                    fresh = fresh - beta * self.memory[client][name]
                step += fresh / (chance * total)
            for client in sorted(self.memory):
                step += beta / total * self.memory[client][name]
            found[name] = value.float() - self.config.lr * step
        self.memory |= updates
        return found

    def state_dict(self) -> StateDict:
        return {"memory": {str(client): dict(held) for client, held in self.memory.items()}}

    def load_state_dict(self, state: StateDict) -> None:
        memory = {int(client): dict(held) for client, held in state["memory"].items()}
        if odd := [client for client in memory if not 0 <= client < self.federation.clients]:
            raise ValueError(f"there is no client {odd[0]} whose update could be remembered")
        update = {info.name: torch.empty(info.param.shape, device="meta") for info in self.parameters}
        for held in memory.values():
            check_tensors(held, update)
        self.memory = memory
