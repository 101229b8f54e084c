"""Self-training: a student learns what a teacher says of unlabelled rows, by how far that helps on labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.callback import Callback
from lrft.core.context import computing, share_done
from lrft.core.notes import say
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import check_judged, token_logprobs
from lrft.methods.objectives._parts import document_of, scale_by_document
from lrft.methods.objectives._reference import check_reference, logits_of, states_of, undropped
from lrft.ops.summed import sum_in_chunks
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import (
    MODEL_OR_RUN,
    Annotated,
    Field,
    Iterator,
    MethodConfig,
    Problem,
    RecipeView,
)


@OBJECTIVES.register
class SelfTraining(Objective, Callback):
    """A session of LiST: a new student learns pseudo-labels, weighed by labelled rows, and is then tuned on these.

        l_i  = mean over the tokens t of pseudo-labelled answer i of KL(p_t || q_t)
        v    = mean over labelled answers j of the gradient of c_j,  c_j = mean over tokens of -log q_t(x_{t+1})
        w_i  = max(0, <gradient of l_i, v>) / sum over k of max(0, <gradient of l_k, v>)
        loss = n sum over i of w_i l_i,  and in the last `finetune` of the steps  n mean over j of c_j

    over a micro-batch of n rows, with q the student's distribution and p the `teacher`'s. <gradient of l_i, v> is minus
    the derivative of the labelled loss by the weight of row i, after a plain gradient step with weights that are 0,
    over the rate. Rows that are wanted are labelled; those that are not are pseudo-labelled, each with an answer that
    the teacher gave. A micro-batch without labelled rows has w_i = 1 over its pseudo-labelled ones, and one whose w_i
    are all 0 teaches nothing. The loop divides by the rows of the step. In calibration every row counts: the sum of
    l_i and c_j.

    Shapes: p, q (tokens, vocabulary), of which one chunk exists at a time; l, c, w one number a row. `teacher` is named
    as in `distillation`, and reads the rows frozen and in evaluation mode. Gradients for the weights are those of every
    row by itself, without dropout: a forward and a backward pass more, row by row. At step 0 the student is the base.
    Trains: what the adapter trains, adds no parameter and keeps no state but whether a row was taught, told at the end
    where none was. Records, over this process's rows of the step: pseudo_rows; pseudo_loss, the mean l_i; taught, the
    share of them with w_i above 0; unweighted, those without labelled rows beside them; labelled_rows and
    labelled_loss, the mean c_j, of the steps that learn it.
    Source: Wang et al., "LiST", Findings of NAACL 2022, arXiv 2110.06274, and the authors' code, from which the
    weights, the two phases and the new student are. A session is 1,000 steps of 16 rows there, and 50 epochs of the
    labelled ones.
    Departures: labelled rows are those of the same micro-batch, and not four of a stream of their own; the authors add
    1e-6 to the sum of w. Their answer is one word in a prompt, whose distribution is the label; here it may be several
    tokens, which the teacher wrote. Confidence thresholds and a teacher that is an average are left out.
    Advice: the first teacher is a run on the labelled rows, the next one the student; the pseudo-labels are its answers
    (`lrft data augment`). Let `data.mix` and train.batch_size bring labelled rows into every micro-batch.
    """

    aliases = {
        "list lite_self_training pseudo_labels": (
            "objective: {method: self_training, teacher: RUN}\ndata: {format: unpaired}"
        ),
    }
    provides = {"backward"}
    requires = {"judged", "adapters"}

    config: Config

    class Config(MethodConfig):
        teacher: Annotated[str | None, MODEL_OR_RUN] = Field(
            None,
            min_length=1,
            description="run, one of its checkpoints, recipe, folder or .gguf file of a model, or hub id (owner/name, "
            "owner/name@revision)",
        )
        finetune: float = Field(
            0.25, ge=0, le=1, description="share of the steps, at the end, that learn labelled rows alone"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What the student starts from has nothing to teach it, and passes that only some processes make."""
            if self.teacher is None:
                message = "is not there, and the base model is where the student starts; name a run on labelled rows"
                yield Problem("objective.teacher", message)
            if recipe["train.shard_base"] is True:
                message = "rows take passes of their own, of which processes have unequally many; write false"
                yield Problem("train.shard_base", message)
            if recipe["model.dtype"] == "float16":
                message = (
                    "gradients of single rows are taken without a scale, and small ones are 0; write bfloat16"
                )
                yield Problem("model.dtype", message)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.taught = False  # whether any pseudo-labelled row had a weight so far

    @property
    def teacher_name(self) -> str | None:
        return self.config.teacher

    def gradients_by(self, run: Run) -> int:
        """Rows of which none helps teach nothing, for as many steps as they come."""
        return run.total_steps + 1

    def finish(self, run: Run) -> None:
        if not run.team.largest(int(self.taught)) and self.config.finetune < 1:
            say("no pseudo-labelled row helped the labelled ones in any step, so the teacher taught nothing")

    def state_dict(self) -> Mapping[str, object]:
        return {"taught": self.taught}

    def load_state_dict(self, state: Any) -> None:
        self.taught = state["taught"]

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the rows of the batch.

        Raises:
            DataError: the batch does not say which answers are labelled.
            RecipeError: weights of the base train.
        """
        check_judged(batch, "self_training")
        check_reference(run, "self_training")
        labelled = torch.tensor(batch.wanted)
        if run is None:
            return self._divergence(model, batch, (~labelled).float()) + _entropy(
                model, batch, labelled.float()
            )
        if run.step >= round((1 - self.config.finetune) * run.planned_steps):
            each = labelled.float() * len(labelled) / max(int(labelled.sum()), 1)
            loss = _entropy(model, batch, each)
            _record(run, "labelled", loss.detach() / len(labelled), int(labelled.sum()))
            return loss
        weights = self._weights(model, batch, labelled, run)
        self.taught = self.taught or bool(weights.any())
        return self._divergence(model, batch, len(labelled) * weights)

    def _weights(self, model: LanguageModel, batch: Batch, labelled: Tensor, run: Run) -> Tensor:
        """Weights w of the rows of the batch, 0 for labelled ones, (rows,) float32 on the host."""
        trained = [info.param for info in run.parameters if info.param.requires_grad]  # some may rest
        pseudo, losses, along = (~labelled).nonzero()[:, 0].tolist(), [], torch.zeros(len(labelled))
        beside = bool(labelled.any())
        with torch.enable_grad(), undropped(model):
            # v but for how many there are, which cancels
            wanted = [torch.zeros_like(one, dtype=torch.float32) for one in trained]
            for index in labelled.nonzero()[:, 0].tolist():
                _, gradient = self._alone(model, batch, index, trained)
                wanted = [total + one for total, one in zip(wanted, gradient, strict=True)]
            for index in pseudo:
                loss, gradient = self._alone(model, batch, index, trained)
                losses.append(loss)
                products = [(one * total).sum() for one, total in zip(gradient, wanted, strict=True)]
                along[index] = torch.stack(products).sum().cpu()
        if not beside:
            along[pseudo] = 1.0
        helps = along.clamp(min=0)
        weights = helps / helps.sum() if bool(helps.any()) else helps
        if losses:
            taught = torch.tensor(float((weights > 0).sum()) / len(losses))
            _record(run, "pseudo", torch.stack(losses).mean(), len(losses), taught=taught)
        if not beside:
            run.record(unweighted=run.metrics.get("unweighted", 0) + len(pseudo))
        return weights

    def _alone(
        self, model: LanguageModel, batch: Batch, index: int, trained: list[torch.nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """The l or c of one row, and its gradient in float32."""
        one = document_of(batch, index)
        with computing(one, counts=False, done=share_done()):
            single = torch.ones(1)
            loss = (
                _entropy(model, one, single) if batch.wanted[index] else self._divergence(model, one, single)
            )
            found = torch.autograd.grad(loss, trained, allow_unused=True)
        zero = [torch.zeros_like(parameter) for parameter in trained]
        return loss.detach(), [(z if g is None else g).float() for g, z in zip(found, zero, strict=True)]

    def _divergence(self, model: LanguageModel, batch: Batch, weights: Tensor) -> Tensor:
        """The sum over rows of a weight times l; 0 with a graph where there is none."""
        teacher = model if self.teacher is None else self.teacher
        theirs = states_of(teacher, model, batch)

        def part(hidden: Tensor, given: Tensor, scale: Tensor) -> Tensor:
            student = model.head.logits(hidden).float().log_softmax(-1)
            wanted = logits_of(teacher, model, given).log_softmax(-1)
            apart = F.kl_div(student, wanted, reduction="none", log_target=True).sum(-1)
            return (apart * scale).sum()

        scale = scale_by_document(batch, weights)
        return sum_in_chunks(part, model.head, batch.supervised_rows(model.hidden(batch)), theirs, scale)


def _entropy(model: LanguageModel, batch: Batch, weights: Tensor) -> Tensor:
    """The sum over rows of a weight times c."""
    return -(token_logprobs(model, batch) * scale_by_document(batch, weights)).sum()


def _record(run: Run, what: str, mean: Tensor, rows: int, **others: Tensor) -> None:
    """Means over the rows of the step so far, as tensors on the device: nothing here waits for it."""
    if not rows:
        return
    count = run.metrics.get(f"{what}_rows", 0) + rows
    for name, value in {f"{what}_loss": mean, **others}.items():
        before = run.metrics.get(name, 0.0)
        run.record(**{name: before + (value - before) * rows / count})
    run.record(**{f"{what}_rows": count})
