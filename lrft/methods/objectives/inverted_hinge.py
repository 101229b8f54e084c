"""Inverted hinge: unlearn some answers by making the next most likely token the likeliest, and keep others."""

from __future__ import annotations

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import check_judged
from lrft.methods.objectives._means import record_means
from lrft.ops.loss import CHUNK, Head, linear_cross_entropy, sum_again
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig


@OBJECTIVES.register
class InvertedHinge(Objective):
    """LoKU's unlearning: a bounded loss on the answers to forget beside cross-entropy on those to retain.

        loss = sum over tokens x_t of unwanted answers of 1 + p(x_t) - max over v != x_t of p(v)
             + `retain` * sum over tokens x_t of wanted answers of -log p(x_t)

    with p the model's distribution at the position. The first term is between 0 and 2; its gradient lowers the logit of
    x_t and raises that of the runner-up alone, and vanishes as p(x_t) does. Rows that are not wanted are the set to
    forget, wanted ones the set to retain; with `init: fila` the adapter starts where the first set matters more. The
    loop divides by the tokens of the step. Logits of the first term are kept for one chunk of positions at a time, and
    computed again in the backward pass.

    Shapes: p (tokens, vocabulary); the loss one number. At step 0 it is what the base model says.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's tokens of the
    step: forget_loss and retain_loss, the means of either term without `retain`, where there are such tokens.
    Source: Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025, arXiv
    2408.06621, and the authors' code.
    Departures: both sets share micro-batches, and the divisor is all tokens. The authors add the means over a batch of
    each; with as many tokens in either set this is half of theirs, with others `retain` sets the balance. Probabilities
    are always a softmax; the code leaves values between 0 and 1 as they are.
    Advice: say both sets in `data.eval` as a list of sources, and each is scored by itself.
    """

    aliases = {
        "ihl inverted_hinge_loss loku unlearning": "objective: inverted_hinge\ndata: {format: unpaired}",
    }
    provides = {"backward"}
    requires = {"judged"}

    config: Config

    class Config(MethodConfig):
        retain: float = Field(1.0, ge=0, description="weight of the cross-entropy of the answers to retain")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch.

        Raises:
            DataError: the batch does not say which answers are wanted.
        """
        check_judged(batch, "inverted_hinge")
        hidden = model.hidden(batch)
        rows = hidden.reshape(-1, hidden.shape[-1])
        losses = []
        for loss, wanted in ((inverted_hinge, False), (linear_cross_entropy, True)):
            places = batch.targets_where(wanted)
            at = batch.supervised.index_select(0, places)
            losses.append(loss(rows.index_select(0, at), model.head, batch.targets.index_select(0, places)))
            if run is not None and len(places):
                what = "retain" if wanted else "forget"
                record_means(run, f"{what}_tokens", len(places), {f"{what}_loss": losses[-1].detach()})
        return losses[0] + self.config.retain * losses[1]


def inverted_hinge(hidden: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Summed over positions, (N, d) and (N,) -> float32 scalar; 0 with a graph when N is 0."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        p = head.logits(rows).float().softmax(-1)
        others = p.scatter(1, wanted[:, None], -1.0).amax(-1)
        return (1 + p.gather(1, wanted[:, None])[:, 0] - others).sum()

    if hidden.shape[0] == 0:
        return hidden.float().sum()
    return sum_again(part, chunk, hidden, targets)
