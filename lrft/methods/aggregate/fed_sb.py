"""Fed-SB: only cores between two frozen factors travel."""

from __future__ import annotations

from lrft.methods.aggregate.fedavg import FedAvg
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, Literal


@AGGREGATORS.register
class FedSB(FedAvg):
    """Federated Silver Bullet: clients train the r x r core between two frozen factors, and the cores are averaged.

        R <- mean_k R_k
        mean_k (s B R_k A) = s B (mean_k R_k) A

    The server finds A, B and the first R by LoRA-SB (`init: lora_sb`), once, from gradients of rows that it holds;
    after that A and B never travel. As the change of a weight is linear in R, its average is that of the changes,
    exactly.

    Shapes: A (r, in) and B (out, r), frozen; R (r, r).
    Bytes: 4 r^2 per site, up and down, for each client and round, whatever in, out and the number of clients are; A and
    B once.
    State: none; the replies of earlier rounds are not kept.
    Source: Singhal et al., "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private)
    Federated LoRA Fine-Tuning", 2025, arXiv 2502.15436, and the authors' code, which averages a stack in float32 with
    equal weights, as is the default here.
    Departures: A and B stay in float32. The authors' script of several rounds adds the replies of a round to those of
    all rounds before, so that its averages are of old rounds too; here each is of its own round.
    Advice: `adapter: {method: lora_xs, rank: 200, alpha: 200}`, `init: lora_sb`: alpha is the rank in the authors'
    scripts, whatever they are told, so that s is 1 and a step of R one of the change. The start is found from rows of
    all clients, as if the server held them: who must not do that gives it an adapter (`model.adapter`) or `init:
    lora_xs`.
    """

    requires = {"core_matrix"}

    class Config(FedAvg.Config):
        weights: Literal["examples", "equal"] = Field(
            "equal", description="a client counts as often as it has rows, or as often as every other"
        )
