"""FFA-LoRA: the factor A is frozen, so that averages are exact."""

from __future__ import annotations

from lrft.methods.aggregate.fedavg import FedAvg
from lrft.registry.axes import AGGREGATORS


@AGGREGATORS.register
class FFALoRA(FedAvg):
    """Federated freeze-A LoRA: clients share one random A that nobody trains, and average B alone.

        B <- sum_k p_k B_k
        sum_k p_k (s B_k A) = s (sum_k p_k B_k) A

    with p_k as in `fedavg`: as the change of a weight is linear in B, its average is that of the changes, exactly. A is
    drawn once and is the same on every client in every round, another one at every site; optimizers begin anew in every
    round.

    Shapes: A (r, in), frozen; B (out, r) = 0 at the start.
    Bytes: 4 r out per site, up and down, for each client and round; A once.
    State: none.
    Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", 2024, arXiv 2403.12313.
    Departures: noise for privacy is the recipe's `privacy`, of any aggregator.
    Advice: `adapter: lora_fa`; the rate has to be larger than LoRA's.
    """

    requires = {"frozen_A"}

    class Config(FedAvg.Config):
        pass
