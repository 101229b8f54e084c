"""SparseLoRA: while LoRA trains, the frozen layers compute the channels alone that matter to the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from lrft.core.adapter import Additive, Branch, LowRank, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._contextual import Contextual
from lrft.methods.adapters.lora import LoRA
from lrft.ops.channel_matmul import channel_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, Field


@ADAPTERS.register
class SparseLoRA(LoRA):
    """Contextual sparsity: LoRA beside frozen layers of which, in training, some channels are computed.

        y  = x W^T + b + s (drop(x) A^T) B^T     at the tokens that are learnt, in the first steps, in evaluation
        y  = x W_I^T + b_I at I, 0 elsewhere, + s (drop(x) A^T) B^T     q, k, v, gate, up at the other tokens
        y  = x_I W_I^T + b + s (drop(x) A^T) B^T                        o, down there
        W' = W + s B A

    with r = `rank`, s and drop of `alpha` and `dropout` as in LoRA. I are the floor(C (1 - p)) channels of largest
    score, of C; p = `feed_forward` or `attention`. All tokens of the micro-batch share I, and all have a say in it, so
    that other micro-batches choose otherwise:

        feed-forward block:  |act(x G) * (x U)|, the L2 norm over the tokens
        q and k:             |q| |k|, the norms of queries averaged over the heads that read one head of keys
        v and o:             |v|

    by G, U, q, k, v of the weights' leading `predictor_rank` singular triples. `dense_first` and `dense_last` layers
    are left dense, or all but `feed_forward_layers` and `attention_layers`, and the first `dense_steps` of the run.
    Layers without a LoRA are sparse too. Backward passes are those of the products that were computed.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0 as in LoRA: W' = W at step 0, while a training step
    sees the sparse model by design.
    Trains: r (in + out) numbers per site. Of a frozen product no activation is kept; recomputed activations choose the
    same channels, which depend on the block's input alone. Predictors take 4 r' (in + out) bytes for r' directions of
    five layers of a sparse block, and are made at the first sparse step.
    Source: Khaki et al., "SparseLoRA: Accelerating LLM Fine-Tuning with Contextual Sparsity", ICML 2025, and the
    authors' code (z-lab/sparselora).
    Departures: heads of queries go with the head of keys that they read (the code's indices of grouped heads do not
    meet, and its o reads channels of the keys); gradients pass through what was computed (the code cuts them where it
    gathers and scatters, and leaves biases out everywhere); a channel that is not computed has no bias; padding has no
    say; each row has its own learnt tokens, where the code takes one stretch of positions for a whole batch, from the
    first that is learnt in any row to the last. As in the code, queries and keys are chosen before their rotation,
    channel by channel. Above 2,048 rows and columns triples are by a randomised SVD. One sparsity for all sparse
    attentions and one for all sparse feed-forward blocks, as in the authors' files, which could name one for each.
    Advice: rank 32, alpha 64, no dropout, learning rate 3e-4 in the authors' runs; for Llama-3-8B and math 0.99 in 28
    feed-forward blocks (layers 3 to 30), 0.75 in 14 attentions (`attention_layers`: 14 to 29 without 20 and 24).
    """

    aliases = {
        "contextual_sparsity spft": "adapter: sparselora",
    }
    provides = {"adapters", "mergeable", "low_rank", "linear_delta", "trained_pair"}
    requires = {"eager", "backward", "fixed_base", "one_stage"}
    peft = LoRA.peft

    config: Config

    class Config(LoRA.Config):
        targets: str | list[str] = Field(
            ["q_proj", "k_proj", "v_proj", "o_proj"], description="as for every adapter; what gets a LoRA"
        )
        rank: int = Field(32, gt=0, le=65_536)
        alpha: float = Field(64.0, gt=0, le=1_000_000)
        feed_forward: float = Field(
            0.99, ge=0, lt=1, description="share of a block's channels that is left out"
        )
        attention: float = Field(
            0.75, ge=0, lt=1, description="share of an attention's channels that is left out"
        )
        dense_first: int = Field(3, ge=0, description="layers at the beginning that compute all channels")
        dense_last: int = Field(1, ge=0, description="layers at the end that compute all channels")
        feed_forward_layers: Annotated[list[Annotated[int, Field(ge=0)]] | None, ADDED] = Field(
            None, min_length=1, description="layers whose blocks are sparse, instead of all between those"
        )
        attention_layers: Annotated[list[Annotated[int, Field(ge=0)]] | None, ADDED] = Field(
            None, min_length=1, description="layers whose attentions are, likewise"
        )
        dense_steps: float = Field(
            0.05, ge=0, lt=1, description="share of the run's steps that comes first, dense"
        )
        predictor_rank: int = Field(
            8, gt=0, le=4096, description="directions of a weight that channels are scored by"
        )

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        assert shared is None or isinstance(shared, Contextual)
        self._contextual = (shared,)  # a tuple, so that it is no part of this module

    @classmethod
    def at(cls, config: Any, site: Site, shared: Shared | None = None) -> SparseLoRA:
        return cls(config, site, shared)

    @classmethod
    def shared(cls, config: Any, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """What chooses the channels, which trains nothing."""
        return Contextual(config)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._beside(self.branch(), x, base)

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        assert isinstance(start, LowRank)
        return self._beside(self.branch_since(start), x, base)

    def _beside(self, branch: Branch, x: Tensor, base: FrozenLinear) -> Tensor:
        (contextual,) = self._contextual
        channels = None if contextual is None else contextual.chosen.get(self.site.name)
        if channels is None:
            return self.through(branch, x, base)
        return channel_linear(x, base, channels) + self.through(branch, x, None)
