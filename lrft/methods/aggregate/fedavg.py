"""Federated averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lrft.core.aggregate import Aggregator, Reply, Tensors, mean
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, Literal, MethodConfig


@AGGREGATORS.register
class FedAvg(Aggregator):
    """Federated averaging: everything that trains is averaged over the clients, tensor by tensor.

        theta <- sum_k p_k theta_k

    with p_k the share of client k among the rows of the round (`weights: examples`), or 1 / K (`equal`), theta_k what
    client k trained. Of LoRA, A and B are averaged apart (FedIT), so that the change of a weight is not the average of
    the changes: s (sum p_k B_k) (sum p_k A_k) is not s sum p_k B_k A_k; how far they part is measured every round.

    Shapes: theta as it trains.
    Bytes: everything that trains, up and down, for each client and round: 4 r (in + out) per site of LoRA.
    State: none.
    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, arXiv
    1602.05629; of LoRA: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", 2023, arXiv
    2305.05644.
    Departures: none.
    """

    class Config(MethodConfig):
        weights: Literal["examples", "equal"] = Field(
            "examples", description="a client counts as often as it has rows, or as often as every other"
        )

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        shares = self.shares(replies)
        return {name: mean([reply.message[name] for reply in replies], shares) for name in held}
