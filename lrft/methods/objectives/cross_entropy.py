"""Next-token cross-entropy on the supervised tokens."""

from __future__ import annotations

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.ops.loss import linear_cross_entropy
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import ADDED, Annotated, Field, MethodConfig


@OBJECTIVES.register
class CrossEntropy(Objective):
    """Completion-only supervised fine-tuning: next-token cross-entropy on the supervised tokens.

        loss = -sum over supervised positions t of (1 - e) log p_t[x_{t+1}] + e mean over v of log p_t[v] - z log^2 Z_t
        p_t  = softmax(head(h_t)) = exp(head(h_t)) / Z_t

    with h the hidden states, x the tokens, e = `label_smoothing`, z = `z_loss`, v the V tokens of the vocabulary. Only
    the N supervised positions meet the head, in chunks whose logits are never kept.

    Shapes: h (B, L, d); the loss one number. At step 0 it is the base model's loss.
    Trains: what the adapter trains; adds no parameter.
    Source: standard; `completion_only_loss` elsewhere. Smoothing: Szegedy et al., CVPR 2016, arXiv 1512.00567, as
    torch's `cross_entropy` has it. z: Chowdhery et al., "PaLM", 2022, arXiv 2204.02311, where z is 1e-4.
    Departures: a sum; the loop divides by the step's tokens.
    """

    aliases = {
        "sft supervised_fine_tuning causal_lm clm lm nll ce language_modeling": "objective: cross_entropy",
        "pt pretrain": "objective: cross_entropy\ndata: {format: text}",
        "z_loss": "objective: {method: cross_entropy, z_loss: 1e-4}",
    }
    provides = {"backward"}
    requires = set()

    config: Config

    class Config(MethodConfig):
        label_smoothing: Annotated[float, ADDED] = Field(
            0.0,
            ge=0,
            lt=1,
            description="share of every target that is spread evenly over the vocabulary; scores are without it",
        )

        z_loss: Annotated[float, ADDED] = Field(
            0.0,
            ge=0,
            description="weight of the squared log of what the softmax divides by, which keeps logits from drifting; "
            "scores are without it",
        )

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        rows = batch.supervised_rows(model.hidden(batch))
        # A change of this loss may have other settings.
        smoothing, z = (getattr(self.config, name, 0.0) for name in ("label_smoothing", "z_loss"))
        return linear_cross_entropy(rows, model.head, batch.targets, smoothing=smoothing, z=z)
