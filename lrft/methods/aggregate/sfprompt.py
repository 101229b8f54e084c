"""SFPrompt: clients hold both ends of a model, the server its middle."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lrft.core.aggregate import Federation, Phase, Split
from lrft.core.params import ParamInfo
from lrft.methods.aggregate.fedavg import FedAvg
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, MethodConfig


@AGGREGATORS.register
class SFPrompt(FedAvg):
    """Split federated prompt tuning: clients train both ends of the model, first alone, then through the server.

        y = tail(body(head([P, x])))                            the model, cut between its blocks
        A: P, tail <- steps on l(tail(head([P, x])))            all rows; nothing travels
        D' = the `keep` |D| rows of largest mean_t || softmax(f(x)_t) - onehot(y_t) ||_2,  f = tail(head(.))
        B: P, tail <- steps on l(tail(body(head([P, x]))))      rows D'; hidden states and gradients travel
        P, tail <- sum_k p_k P_k, sum_k p_k tail_k

    with `head` and `tail` the blocks of the two ends (embedding, last norm and output head go with them), l the loss, t
    the targets of a row, p_k as in `fedavg`. P and tail are whatever trains: a soft prompt (`adapter: prompt_tuning`),
    weights of the last blocks (`trainable.weights`), or an adapter on blocks of both ends. The body is frozen; labels
    and the loss stay at the client.

    With `eta` the server gets h + z of every position in B, p(z) ~ exp(-eta ||z||_2), d_chi-privacy of each hidden
    state in each pass anew; no noise is on gradients, in A, or in scores.

    Shapes: h (B, L, d) at both cuts, the positions of P among the L.
    Bytes: everything that trains, up and down, for each client and round; in B 4 B L d numbers a micro-batch: hidden
    states up and down, gradients up and down; 2 B L d where nothing before the body trains, as no gradient goes back.
    State: none.
    Source: Cao et al., "SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained Models over
    Resource-Limited Devices", 2024, arXiv 2407.17533: its abstract and a structured summary, as the rest was not to be
    had.
    `eta`: the noise of Shen et al., "A Split-and-Privatize Framework for Large Language Model Fine-Tuning", 2023, arXiv
    2312.15603, and under another title at IJCAI 2025, as others describe it: the text of neither was to be had.
    Departures: the paper's rows are images with one label each; of a text the error is the mean over its targets. The
    paper's `head`, `tail`, `keep` and `local_epochs` are not known, nor whether it chooses rows before A or after it:
    the 0.5 of `keep` is that of a public re-implementation, which chooses before A and trains A on D' too. One
    optimizer and one schedule go through A and B. `eta` is no part of SFPrompt. Split-and-privatize disturbs tokens
    that contribute to the task less, or not at all (descriptions differ): those of a class by a measure like TF-IDF,
    for generated text by attention scores. Neither formula, nor how many tokens are spared and by how much, was to be
    had, nor code of its authors; here none is spared.
    Advice: `adapter: prompt_tuning`, and `trainable.weights` with the patterns of the last blocks.
    """

    provides = {"split"}

    class Config(FedAvg.Config):
        head: int = Field(
            1, ge=0, description="blocks at the beginning that clients hold; the paper's is not known"
        )
        tail: int = Field(
            1, ge=0, description="blocks at the end that clients hold; the paper's is not known"
        )
        keep: float = Field(
            0.5,
            gt=0,
            le=1,
            description="share of the rows, the hardest, that meet the server; the paper's is not known",
        )
        local_epochs: float = Field(
            1.0,
            ge=0,
            le=10_000,
            description="passes without the body before them, or 0; the paper's are not known",
        )
        eta: float | None = Field(
            None,
            gt=0,
            description="noise of density exp(-eta |z|), about d / eta long, on every hidden state that goes up",
        )

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        super().__init__(config, federation, parameters)
        self.split = Split(self.config.head, self.config.tail, self.config.eta)
        alone = [Phase(epochs=self.config.local_epochs, bypass=True)] if self.config.local_epochs else []
        self.phases = (*alone, Phase(keep=self.config.keep))

    def error(self, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.softmax(-1)
        hit = p.gather(-1, targets[:, None])[:, 0]
        # ||p - e_y||^2 = ||p||^2 - 2 p_y + 1, which rounding may bring below 0 where p is e_y.
        return (p.square().sum(-1) - 2 * hit + 1).clamp_min(0).sqrt()
