"""Next-token cross-entropy on the supervised tokens."""

from __future__ import annotations

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.ops.loss import linear_cross_entropy
from lrft.registry.axes import OBJECTIVES


@OBJECTIVES.register
class CrossEntropy(Objective):
    """Completion-only supervised fine-tuning: next-token cross-entropy on the supervised tokens.

        loss = -sum over supervised positions t of log softmax(head(h_t))[x_{t+1}]

    with h the hidden states, x the tokens. Only the N supervised positions meet the head, in chunks whose logits are
    never kept.

    Shapes: h (B, L, d); the loss one number. At step 0 it is the base model's loss.
    Trains: what the adapter trains; adds no parameter.
    Source: standard; `completion_only_loss` elsewhere.
    Departures: a sum; the loop divides by the step's tokens.
    """

    aliases = {
        "sft supervised_fine_tuning causal_lm clm lm nll ce language_modeling": "objective: cross_entropy",
        "pt pretrain": "objective: cross_entropy\ndata: {format: text}",
    }
    provides = {"backward"}
    requires = set()

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        hidden = model.hidden(batch)
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.supervised)
        return linear_cross_entropy(rows, model.head, batch.targets)
