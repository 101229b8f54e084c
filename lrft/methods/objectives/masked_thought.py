"""Masked Thought: learn a reasoning while parts of what came before are hidden."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Sequence
from lrft.registry.errors import RecipeError


@OBJECTIVES.register
class MaskedThought(CrossEntropy):
    """Completion-only cross-entropy on inputs whose answer tokens are partly replaced.

        x'_{t+1} = a substitute with probability p, else x_{t+1},      at every supervised position t
        loss = -sum over supervised positions t of log softmax(head(h'_t))[x_{t+1}],  h' from the inputs x'
        p = probability * min(1, step / (ramp * steps))

    with probability = `probability`, ramp = `ramp`, step the finished steps of the run's steps (p = probability
    throughout with `ramp: 0`), and `label_smoothing` and `z_loss` as in `cross_entropy`. The substitute is a uniform
    random token, or `token`. Prompts are never touched, targets stay as they are, every answer token is predicted.
    Draws are new in every epoch, like dropout.

    Shapes: x, x' (B, L). At step 0 p is 0, so it is cross-entropy (unless `ramp: 0`). In evaluation and calibration
    nothing is replaced.
    Trains: what the adapter trains; adds no parameter.
    Source: Chen et al., "Masked Thought", ACL 2024, and the authors' code (GSM8K: p 0.4, ramp 0.66, random tokens).
    Departures: the ramp counts optimizer steps, the authors' counts examples seen by one worker.
    """

    aliases = {
        "mft": "objective: masked_thought",
    }

    config: Config

    class Config(CrossEntropy.Config):
        probability: float = Field(0.4, ge=0, le=1)
        ramp: float = Field(0.66, ge=0, le=1, description="share of the steps over which p rises")
        token: int | None = Field(
            None, ge=0, description="id of the token that replaces; null for uniform random tokens"
        )

        def at(self, step: int, total_steps: int) -> float:
            """P for the step that begins after `step` finished ones."""
            rising = self.ramp * total_steps
            return float(self.probability * (min(1.0, step / rising) if rising > 0 else 1.0))

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends before anything is replaced."""
            if self.probability and not self.at(total_steps - 1, total_steps):
                message = (
                    f"nothing would be replaced in a run of {total_steps} step, whose p is 0; write ramp: 0"
                )
                raise RecipeError(message, "objective.ramp")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss; without a run, as in calibration and evaluation, nothing is replaced."""
        p = 0.0 if run is None else self.config.at(run.step, run.planned_steps)
        return super().__call__(model, batch if run is None or p == 0 else self._masked(model, batch, p), run)

    def _masked(self, model: LanguageModel, batch: Batch, p: float) -> Batch:
        """The batch with part of its answers replaced; drawn anew in every epoch, like dropout."""
        count = batch.targets.numel()
        hit = torch.rand(count) < p
        if self.config.token is not None:
            substitutes = torch.full((count,), self.config.token)
        else:
            vocabulary = model.head.module.get_parameter("weight").shape[0]
            substitutes = torch.randint(vocabulary, (count,))
        device = batch.input_ids.device
        ids = batch.input_ids.flatten().clone()
        ids[batch.supervised + 1] = torch.where(hit.to(device), substitutes.to(device), batch.targets)
        return replace(batch, input_ids=ids.view_as(batch.input_ids))
