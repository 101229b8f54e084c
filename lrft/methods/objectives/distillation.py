"""Distillation: next-token distributions are drawn towards those of a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._reference import check_reference, logits_of, states_of
from lrft.ops.summed import sum_in_chunks
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import (
    MODEL_OR_RUN,
    Annotated,
    Field,
    Iterator,
    Literal,
    MethodConfig,
    Problem,
    RecipeView,
)


@OBJECTIVES.register
class Distillation(Objective):
    """Knowledge distillation from a second model, token by token, beside next-token cross-entropy.

        loss = sum over supervised positions t of (1 - w) (-log q_t(x_{t+1})) + w T^2 D(p'_t, q'_t)
        D    = KL(p' || q') = sum over v of p'(v) (log p'(v) - log q'(v))      `divergence: forward`
        D    = KL(q' || p') = sum over v of q'(v) (log q'(v) - log p'(v))      `divergence: reverse`

    with q the model's distribution and p the teacher's, q' and p' those of their logits divided by T = `temperature`,
    w = `weight`. The loop divides by the tokens of the step. `teacher` is a run (its newest checkpoint), a checkpoint
    of a run, a recipe (its model before training) or a model; null for this model with its adapters off. It reads the
    batches of the student, frozen, in evaluation mode and without gradient.

    Shapes: p, q (tokens, vocabulary), of which one chunk of positions exists at a time; the loss one number. At step 0
    without a `teacher` p = q, so the second term is 0 and has no gradient (unless the start moves the model).
    Trains: what the adapter trains, adds no parameter and keeps no state. Memory: the weights of the teacher, less the
    tensors that both models hold alike while the base is frozen (so a run on the same base adds its adapter alone, once
    it is loaded), and its last hidden states at the supervised positions.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531 (forward, T^2); for
    the reverse Gu et al., "MiniLLM", ICLR 2024, arXiv 2306.08543, as the divergence alone.
    Departures: settled here: the rows are the data's; MiniLLM and on-policy distillation take texts that the student
    writes. A teacher is refused that has another vocabulary, another chat template, fewer positions, or that learnt
    answers alone where every token is learnt here.
    """

    aliases = {
        "distill kd knowledge_distillation logit_distillation": "objective: {method: distillation, teacher: RUN}",
        "reverse_kl": "objective: {method: distillation, teacher: RUN, divergence: reverse, weight: 1}",
    }
    provides = {"backward"}
    requires = set()

    config: Config

    class Config(MethodConfig):
        teacher: Annotated[str | None, MODEL_OR_RUN] = Field(
            None,
            min_length=1,
            description="run, one of its checkpoints, recipe, folder or .gguf file of a model, or hub id (owner/name, "
            "owner/name@revision); null for the base model",
        )
        divergence: Literal["forward", "reverse"] = Field(
            "forward",
            description="forward covers all that the teacher may say; reverse keeps to what it is most likely to say",
        )
        temperature: float = Field(1.0, gt=0, description="what both models' logits are divided by")
        weight: float = Field(
            0.5, ge=0, le=1, description="of the divergence; the rest is of the cross-entropy"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """The base teaches where nothing else does, so it is to stay."""
            if self.teacher is None and recipe["trainable.weights"] != "adapter":
                message = "is null, for the base model, which trains here as well; name a run or a model"
                yield Problem("objective.teacher", message)
            adapter = recipe.declared("adapter")
            if self.teacher is None and adapter is not None and "own_weights" in adapter.provides:
                message = f"is null, for the base model, which {adapter.name} gives up; name a run or a model"
                yield Problem("objective.teacher", message)

    @property
    def teacher_name(self) -> str | None:
        return self.config.teacher

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch.

        Raises:
            RecipeError: weights of the base train, and it is the teacher.
        """
        teacher = self._teacher(model, run)
        theirs = states_of(teacher, model, batch)

        def part(hidden: Tensor, given: Tensor, targets: Tensor) -> Tensor:
            logits = model.head.logits(hidden).float()
            wanted = logits_of(teacher, model, given)
            return self._loss(logits, wanted, targets)

        return sum_in_chunks(
            part, model.head, batch.supervised_rows(model.hidden(batch)), theirs, batch.targets
        )

    def _teacher(self, model: LanguageModel, run: Run | None) -> LanguageModel:
        if self.teacher is not None:
            return self.teacher
        assert self.config.teacher is None, "the teacher that is named is loaded before the first loss"
        check_reference(run, "distillation without a teacher")
        return model

    def _loss(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        """The loss of some positions, (n, V) float32 twice and (n,) -> float32 scalar."""
        config, T = self.config, self.config.temperature
        loss = (1 - config.weight) * F.cross_entropy(logits, targets, reduction="sum")
        if not config.weight:
            return loss
        student, teacher = (logits / T).log_softmax(-1), (wanted / T).log_softmax(-1)
        pair = (student, teacher) if config.divergence == "forward" else (teacher, student)
        return loss + config.weight * T**2 * F.kl_div(*pair, reduction="sum", log_target=True)
