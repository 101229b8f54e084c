"""Inverted hinge: unlearn some answers by making the next most likely token the likeliest, and keep others."""

from __future__ import annotations

from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective, Passes, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import check_judged
from lrft.methods.objectives._means import record_means
from lrft.ops.loss import CHUNK, Head, linear_cross_entropy, sum_again
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig


@OBJECTIVES.register
class InvertedHinge(Objective):
    """LoKU's unlearning: a bounded loss on the answers to forget beside cross-entropy on those to retain.

        loss = mean over tokens x_t of unwanted answers of 1 + p(x_t) - max over v != x_t of p(v)
             + `retain` * mean over tokens x_t of wanted answers of -log p(x_t)

    with p the model's distribution at the position. The first term is between 0 and 2; its gradient lowers the logit of
    x_t and raises that of the runner-up alone, and vanishes as p(x_t) does. Rows that are not wanted are the set to
    forget, wanted ones the set to retain; with `init: fila` the adapter starts where the first set matters more. Both
    means are over the whole step, however it is cut into micro-batches; a step without rows of a set is without its
    term. Logits of the first term are kept for one chunk of positions at a time, and computed again in the backward
    pass.

    Shapes: p (tokens, vocabulary); the loss one number. At step 0 it is what the base model says.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's tokens of the
    step: forget_loss and retain_loss, either mean, without `retain`, where there are such tokens.
    Source: Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025, arXiv
    2408.06621, and the authors' code.
    Departures: both sets share micro-batches, as the rows are mixed, where the authors draw as many of each; a step of
    several has the means of all its tokens, theirs the mean of the micro-batches' means. Probabilities are always a
    softmax; the code leaves values between 0 and 1 as they are.
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

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.counts: list[int] = []  # targets to forget and to retain in a step of several micro-batches
        self.left = 0  # micro-batches of this process that are still to come of it

    def whole_step(self, run: Run, totals: StepTotals, passes: Passes) -> None:
        self.left = 0
        if totals.micro_batch_count == 1:
            return
        mine = [(_counts(batch), counts) for batch, counts in passes()]
        each = run.team.gather([found for found, counts in mine if counts])
        self.counts = [sum(column) for column in zip(*(one for part in each for one in part), strict=True)]
        self.left = len(mine)

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch.

        Raises:
            DataError: the batch does not say which answers are wanted.
        """
        check_judged(batch, "inverted_hinge")
        counts = self.counts if self.left else _counts(batch)
        self.left = max(self.left - 1, 0)
        hidden = model.hidden(batch)
        rows = hidden.reshape(-1, hidden.shape[-1])
        total = rows[:0].float().sum()
        kinds = ((inverted_hinge, False, 1.0), (linear_cross_entropy, True, self.config.retain))
        for (loss, wanted, weight), count in zip(kinds, counts, strict=True):
            places = batch.targets_where(wanted)
            at = batch.supervised.index_select(0, places)
            found = loss(rows.index_select(0, at), model.head, batch.targets.index_select(0, places))
            if run is not None and len(places):
                what = "retain" if wanted else "forget"
                record_means(run, f"{what}_tokens", len(places), {f"{what}_loss": found.detach()})
            total = total + weight * (sum(counts) / max(count, 1)) * found  # the loop divides by all tokens
        return total


def _counts(batch: Batch) -> list[int]:
    """Targets to forget, and to retain."""
    return [len(batch.targets_where(wanted)) for wanted in (False, True)]


def inverted_hinge(hidden: Tensor, head: Head, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Summed over positions, (N, d) and (N,) -> float32 scalar; 0 with a graph when N is 0."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        p = head.logits(rows).float().softmax(-1)
        others = p.scatter(1, wanted[:, None], -1.0).max(-1).values  # of equal ones the first, as theirs
        return (1 + p.gather(1, wanted[:, None])[:, 0] - others).sum()

    if hidden.shape[0] == 0:
        return hidden.float().sum()
    return sum_again(part, chunk, hidden, targets)
