"""BA-LoRA: cross-entropy with three regularisers against what pretraining's bias and noise do to fine-tuning."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrft.core.adapted import adapters_off
from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._directions import first_share
from lrft.methods.objectives._reference import check_reference, states_of
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig


@OBJECTIVES.register
class BALoRA(Objective):
    """Bias-alleviating LoRA: stay near the base, predict diversely, with logits of few directions.

        loss = sum over supervised positions t of  -log p_t(x_{t+1}) + `consistency` KL(q_t || p_t) - `diversity` H(p_t)
             - sum over answers Z of `directions` n (s_1 + ... + s_k) / (s_1 + ... + s_n)

    with p_t the model's distribution, q_t that of the pretrained model, H the entropy in nats, Z (n, vocabulary) the
    logits at the n supervised positions of one document, s its singular values, falling, k = `k`. q is this model with
    its adapters off, in evaluation mode and without gradient: one more forward pass, and the original weights where an
    init such as `pissa` took something off the base. The loop divides by the tokens of the step. Logits are kept for
    one document at a time, and computed again in the backward pass.

    Shapes: p, q (n, vocabulary); the loss one number. At step 0 KL is 0 (unless the start moves the model).
    Trains: what the adapter trains, adds no parameter and keeps no state.
    Source: Chang et al., "BA-LoRA", 2024, arXiv 2408.04556 (generation), and the authors' code, whose weights these
    are; with `init: pissa`, alpha = r, lr 2e-5.
    Departures: settled here: Z is one answer's positions by the vocabulary. The code flattens each sample into one row,
    indexes singular values in a way that fails, and takes no gradient through them. Its KL is a sum over all positions
    divided by the samples, prompts and padding among them, its entropy a mean over the same; both are of supervised
    positions here, per token like the cross-entropy. The variants for classification are `ba_lora_classify`.
    """

    aliases = {
        "bias_alleviating_lora": "objective: ba_lora\ninit: pissa",
    }
    provides = {"backward"}
    requires = {"adapters", "fixed_base", "beside_base"}

    config: Config

    class Config(MethodConfig):
        consistency: float = Field(
            1e-4, ge=0, description="weight of the divergence from the pretrained model"
        )
        diversity: float = Field(3e-4, ge=0, description="weight of the entropy of the predictions")
        directions: float = Field(
            1e-4,
            ge=0,
            description="weight of the share that the first singular values of an answer's logits have",
        )
        k: int = Field(3, gt=0, description="how many singular values are the first")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch.

        Raises:
            RecipeError: weights of the base train, so the base is no reference.
        """
        check_reference(run, "ba_lora")
        reference = states_of(model, model, batch)
        rows = batch.supervised_rows(model.hidden(batch))
        counts = batch.document_sums(torch.ones_like(batch.targets)).tolist()
        total = rows[:0].float().sum()
        for given in zip(*(one.split(counts) for one in (rows, reference, batch.targets)), strict=True):
            if torch.is_grad_enabled():
                total = total + checkpoint(self._answer, model, *given, use_reentrant=False)
            else:
                total = total + self._answer(model, *given)
        return total

    def _answer(self, model: LanguageModel, rows: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        """The loss of one document, (n, d), (n, d) and (n,) -> float32 scalar."""
        config, logits = self.config, model.head.logits(rows).float()
        assert isinstance(model, torch.nn.Module), "adapters sit in a module"
        bare = nullcontext() if model.head.is_frozen_dense else adapters_off(model)
        with torch.no_grad(), bare:
            before = model.head.logits(reference).float().log_softmax(-1)
        now = logits.log_softmax(-1)
        entropy = -(now.exp() * now).sum()
        kl = F.kl_div(now, before, reduction="sum", log_target=True)
        loss = (
            F.nll_loss(now, targets, reduction="sum") + config.consistency * kl - config.diversity * entropy
        )
        if not config.directions or not len(rows):
            return loss
        return loss - config.directions * len(rows) * first_share(logits, config.k)
