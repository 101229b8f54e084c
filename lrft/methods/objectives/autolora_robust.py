"""AutoLoRA: natural texts are learnt by an adapter that is dropped at the end, perturbed ones by the base's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapted import adapted, adapters_off
from lrft.core.batch import Batch
from lrft.core.callback import Callback
from lrft.core.context import computing, share_done
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.core.shared import Shared
from lrft.methods.objectives._embedded import Prompts, embedding_of, moved
from lrft.methods.objectives._reference import undropped
from lrft.ops.loss import linear_cross_entropy
from lrft.ops.summed import sum_in_chunks
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig, Problem, RecipeView

QUARTERS = 4  # of an epoch, after each of which the accuracy counts anew
NOISE = 0.001  # of what an attack begins with
STATE = ("accuracy", "quarter", "right", "tokens")


@OBJECTIVES.register
class AutoLoRaRobust(Objective, Callback):
    """Robust fine-tuning on two branches, whose balance follows from the accuracy of the natural one.

        loss = sum over supervised tokens t of  (1 - a) CE(p_t) + a CE(q_t) + `scale` a KL(p_t || q_t)
        p of the text, with the adapters on; of this pass adapters and head get gradients
        q of the perturbed text, with the adapters off; of this pass base weights that train, and the head
        D <- clip(D + s_e `step` sign(d/dD sum of CE(q_t)), -s_e `epsilon`, s_e `epsilon`),  `attack_steps` times

    with a the share of supervised tokens that p gave the most probability, over the last whole quarter of an epoch
    (before there is one, over the steps so far; 0 in the first step), D added to the embeddings of the tokens of
    prompts, s_e the root mean square of the embedding matrix. D begins as noise of deviation 0.001 s_e, is found in
    evaluation mode with the adapters off, and is constant then. The loop divides by the tokens of the step. After the
    last step the adapters are set to no change: they helped to train, and what is scored, merged and exported then is
    the base with the weights that trained.

    Shapes: D (prompt tokens, d) in float32, gone after the micro-batch; the loss one number, which at step 0 is
    cross-entropy. Memory: activations of both passes. A micro-batch takes `attack_steps` + 2 passes forward and back.
    Trains: the adapter, and the weights that `trainable` names; a and its counts are in checkpoints. Records
    natural_accuracy, the a of the step.
    Source: Xu et al., "AutoLoRa: A Parameter-Free Automated Robust Fine-Tuning Framework", ICLR 2024, arXiv 2310.01818,
    and the authors' code: 1 - a and 6 a, 10 steps of 2/255 within 8/255, the noise, which gradients each pass gives.
    Departures: settled here: made for images, carried to text. Perturbed are embeddings of prompts, in units of s_e,
    without the clip to [0, 1]. In lrft a layer whose weight trains bears no adapter, so both branches train different
    layers, where the authors have both on every layer. a is of the training passes of a quarter of an epoch, where the
    authors score all training rows four times an epoch. The rate is the recipe's; the authors halve it by the robust
    accuracy. Scores between steps are of the natural branch.
    """

    aliases = {
        "autolora adversarial_fine_tuning": "objective: autolora_robust\ntrainable: ['*mlp*weight']\n"
        "adapter: {method: lora, targets: [q_proj, k_proj, v_proj, o_proj]}",
    }
    provides = {"backward"}
    requires = {"adapters", "base_weights", "beside_base", "kept_base", "eager"}

    config: Config

    class Config(MethodConfig):
        epsilon: float = Field(8 / 255, ge=0, description="largest size of an entry of a perturbation")
        step: float = Field(2 / 255, gt=0, description="size of a step of the attack")
        attack_steps: int = Field(10, gt=0, description="steps of the attack")
        scale: float = Field(6.0, ge=0, description="of the divergence of both branches, beside a")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What is computed again in the backward pass would have other gradients."""
            if recipe["model.activation_checkpointing"] not in (None, False):
                message = "computes layers again when other weights take gradients; write false"
                yield Problem("model.activation_checkpointing", message)
            adapter = recipe.declared("adapter")
            if adapter is not None and "one_stage" in adapter.requires:
                message = (
                    f"{adapter.name} cannot be set to no change, as adapters are at the end; choose another"
                )
                yield Problem("adapter.method", message)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.accuracy = 0.0
        self.quarter = self.right = self.tokens = 0
        self.counts: list[Tensor] = []  # of the step, (2,) each: tokens predicted rightly, and all

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch."""
        assert isinstance(model, nn.Module), "adapters sit in a module"
        base, embedding = _base_weights(model), embedding_of(model)
        prompts = Prompts(batch)
        with _frozen(base):
            delta = self._attack(model, embedding, batch, prompts, noisy=run is not None)
            natural = batch.supervised_rows(model.hidden(batch))
        with adapters_off(model), moved(embedding, prompts, delta):
            robust = batch.supervised_rows(model.hidden(batch))
        hits: list[Tensor] = []
        plain = model.head.is_frozen_dense and model.head.rows is None

        def part(both: Tensor, targets: Tensor) -> Tensor:
            rows, others = both.chunk(2, dim=-1)
            p = model.head.logits(rows).float().log_softmax(-1)
            with nullcontext() if plain else adapters_off(model):
                q = model.head.logits(others).float().log_softmax(-1)
            hits.append((p.argmax(-1) == targets).sum())
            a = self.accuracy
            loss = (1 - a) * F.nll_loss(p, targets, reduction="sum")
            loss = loss + a * F.nll_loss(q, targets, reduction="sum")
            return loss + self.config.scale * a * F.kl_div(q, p, reduction="sum", log_target=True)

        total = sum_in_chunks(part, model.head, torch.cat([natural, robust], dim=-1), batch.targets)
        if run is not None:
            right = torch.stack(hits).sum() if hits else batch.targets.sum() * 0
            self.counts.append(torch.stack([right, right.new_tensor(len(batch.targets))]))
            run.record(natural_accuracy=self.accuracy)
        return total

    def _attack(
        self, model: LanguageModel, embedding: nn.Module, batch: Batch, prompts: Prompts, noisy: bool
    ) -> Tensor:
        """D, (P, d) float32."""
        assert isinstance(model, nn.Module), "adapters sit in a module"
        weight = embedding.get_parameter("weight").detach()
        size = weight.float().square().mean().sqrt()
        delta = torch.zeros(len(prompts.places), weight.shape[1], device=weight.device)
        if noisy:
            delta = NOISE * size * torch.randn(delta.shape).to(delta)
        bound = self.config.epsilon * size
        with computing(batch, counts=False, done=share_done()), undropped(model), adapters_off(model):
            for _ in range(self.config.attack_steps if self.config.epsilon and len(delta) else 0):
                delta.requires_grad_(True)
                with torch.enable_grad(), moved(embedding, prompts, delta):
                    rows = batch.supervised_rows(model.hidden(batch))
                    loss = linear_cross_entropy(rows, model.head, batch.targets)
                (gradient,) = torch.autograd.grad(loss, delta)
                delta = delta.detach() + self.config.step * size * gradient.sign()
                delta = torch.minimum(torch.maximum(delta, -bound), bound)
        return delta.detach()

    def after_step(self, run: Run) -> None:
        """Count on to the quarter's end, and drop the adapters after the last step; one that was the last stays one."""
        counts = run.summed(
            torch.stack([torch.zeros(2, dtype=torch.int64, device=run.device), *self.counts]).sum(0)
        )
        self.counts = []
        self.right, self.tokens = (
            a + b for a, b in zip((self.right, self.tokens), counts.tolist(), strict=True)
        )
        quarter = int(run.metrics.get("epoch", 0.0) * QUARTERS + 1e-6)
        if self.tokens and (quarter > self.quarter or not self.quarter):
            self.accuracy = self.right / self.tokens
        if quarter > self.quarter:
            self.quarter, self.right, self.tokens = quarter, 0, 0
        if run.at_an_end:
            for _, site in run.adapted():
                site.adapter.reset()

    def gradients_by(self, run: Run) -> int:
        """The base's weights have none while nothing is predicted rightly."""
        return run.total_steps + 1

    def state_dict(self) -> Mapping[str, object]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: Any) -> None:
        for name in STATE:
            setattr(self, name, state[name])


def _base_weights(model: nn.Module) -> list[nn.Parameter]:
    """What trains and is no adapter's."""
    parts: list[nn.Module] = [site.adapter for _, site in adapted(model)]
    parts += [module for module in model.modules() if isinstance(module, Shared)]
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in own]


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Passes made here give these no gradient."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
