"""Targeted latent adversarial training: the wanted answer, also where activations are pushed to the other one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrft.core.batch import Batch
from lrft.core.context import computing, share_done
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import check_pairs, log_rest, token_logprobs
from lrft.methods.objectives._latent import Prompts, decoder_layers, perturbed
from lrft.methods.objectives._means import record_means
from lrft.methods.objectives._reference import undropped
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import ADDED, Annotated, Field, Iterator, MethodConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError

DECAY = 0.01  # of AdamW as torch has it, by which the authors find a perturbation
UNLIKELY = -5.0  # log-probability of a rejected token below which it is let be


@OBJECTIVES.register
class LatentAdversarial(Objective):
    """Targeted latent adversarial training on pairs: a defence against prompts that steer to the rejected answers.

        D    = argmin over |D_{l,j}| <= `epsilon` of -sum of log p_D(r_t) - `attack_away` sum of log (1 - p_D(c_t))
        loss = sum over pairs of -`toward` sum of log p_D(c_t) - `away` sum of log (1 - p_D(r_t))
                                 - `clean` sum of log p_0(c_t)

    with c the chosen and r the rejected answer, p_D the model whose residual stream after layer l has D_{l,j} added at
    token j of the prompt, for every l of `layers`, p_0 the model as it is. D is found anew for every micro-batch, from
    0, by `steps` steps of AdamW at rate `rate` with weight decay 0.01, each followed by the projection of every token's
    vector to the norm `epsilon`; in evaluation mode, and without gradients for what trains. The loop divides by the
    tokens of the step. A log (1 - p) counts where log p >= -5 alone.

    Shapes: D (layers, prompt tokens, d) in float32, one for both answers of a pair, gone after the micro-batch. At
    step 0 it is found against the base model. With `epsilon: 0` the loss is a supervised and an unlikelihood term. A
    micro-batch takes `steps` forward and backward passes and one forward pass more, and another one with its backward
    pass where `clean` is not 0.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's rejected tokens
    of the step: attack_before and attack_after, the mean of -log p(r_t) at D = 0 and at the last step but one of D.
    Source: Sheshadri et al., "Latent Adversarial Training Improves Robustness to Persistent Harmful Behaviors in LLMs",
    2024, arXiv 2407.15549, and the authors' trainer, whose steps, rate, AdamW and bound of -5 these are; epsilon and
    layers are set for each model there.
    Departures: settled here: with `layers: null` they are at a quarter, a half and three quarters of the depth (the
    authors name them for each model, the embedding too). The third term is of the pairs' own chosen answers, where the
    authors have benign rows of another set (its weight is 0 here). Tokens weigh alike in all terms, where the authors
    take the mean of each over a batch, and divide the weights by their sum. One step of the model for each D, as the
    trainer's default is; its notebooks take several. No data come with it.
    """

    aliases = {
        "lat latent_adversarial_training": "objective: latent_adversarial\ndata: {format: preference}",
    }
    provides = {"backward"}
    requires = {"pairs", "eager"}

    config: Config

    class Config(MethodConfig):
        layers: list[Annotated[int, Field(ge=0)]] | None = Field(
            None, min_length=1, description="layers, from 0 on, after which the residual stream is perturbed"
        )
        epsilon: float = Field(1.0, ge=0, description="largest norm of a token's perturbation")
        steps: int = Field(16, gt=0, description="steps in which a perturbation is found")
        rate: float = Field(0.05, gt=0, description="their rate")
        toward: float = Field(1.0, ge=0, description="weight of the chosen answer, perturbed")
        away: float = Field(1.0, ge=0, description="weight of what is not the rejected answer, perturbed")
        clean: float = Field(0.0, ge=0, description="weight of the chosen answer, not perturbed")
        attack_away: Annotated[float, ADDED] = Field(
            0.0,
            ge=0,
            description="weight of what is not the chosen answer, in what a perturbation is found by",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What is computed again in the backward pass would not be perturbed."""
            if recipe["model.activation_checkpointing"] not in (None, False):
                message = "computes layers again without what latent_adversarial added to them; write false"
                yield Problem("model.activation_checkpointing", message)

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the tokens of the batch.

        Raises:
            DataError: the batch does not hold pairs.
            RecipeError: the model has fewer layers, or virtual tokens before its documents.
        """
        check_pairs(batch, "latent_adversarial")
        config, prompts = self.config, Prompts(batch)
        layers = self._layers(model)
        chosen = _of_chosen(batch)
        deltas = self._attack(model, layers, batch, prompts, ~chosen, run)
        with perturbed(layers, prompts, deltas):
            logprobs = token_logprobs(model, batch)
        loss = -config.toward * torch.where(chosen, logprobs, 0).sum()
        loss = loss - config.away * torch.where(chosen, 0, unlikelihood(logprobs)).sum()
        if config.clean:
            loss = loss - config.clean * torch.where(chosen, token_logprobs(model, batch), 0).sum()
        return loss

    def _layers(self, model: LanguageModel) -> list[nn.Module]:
        assert isinstance(model, nn.Module), "layers sit in a module"
        found = decoder_layers(model)
        wanted = self.config.layers
        if wanted is None:
            wanted = sorted({len(found) * k // 4 for k in (1, 2, 3)})
        if max(wanted) >= len(found):
            message = f"names layer {max(wanted)}, and the model has {len(found)}, counted from 0"
            raise RecipeError(message, "objective.layers")
        return [found[k] for k in sorted(set(wanted))]

    def _attack(
        self,
        model: LanguageModel,
        layers: Sequence[nn.Module],
        batch: Batch,
        prompts: Prompts,
        rejected: Tensor,
        run: Run | None,
    ) -> list[Tensor]:
        """D of every layer, (P, d) float32 each."""
        config, losses = self.config, []
        with computing(batch, counts=False, done=share_done()), undropped(model):
            with torch.no_grad():
                width = model.hidden(batch).shape[-1]
            start = torch.zeros(prompts.count, width, device=batch.input_ids.device)
            deltas = [start.clone().requires_grad_(True) for _ in layers]
            optimizer = torch.optim.AdamW(deltas, lr=config.rate, weight_decay=DECAY)
            for _ in range(config.steps if config.epsilon else 0):
                with torch.enable_grad(), perturbed(layers, prompts, deltas):
                    logprobs = token_logprobs(model, batch)
                    toward = -torch.where(rejected, logprobs, 0).sum()
                    loss = (
                        toward - config.attack_away * torch.where(rejected, 0, unlikelihood(logprobs)).sum()
                    )
                for delta, gradient in zip(deltas, torch.autograd.grad(loss, deltas), strict=True):
                    delta.grad = gradient
                optimizer.step()
                _project(deltas, config.epsilon)
                losses.append(toward.detach())
        if run is not None and losses:
            sums = {"attack_before": losses[0], "attack_after": losses[-1]}
            record_means(run, "attacked_tokens", rejected.sum(), sums)
        return [delta.detach() for delta in deltas]


@torch.no_grad()
def _project(deltas: Sequence[Tensor], epsilon: float) -> None:
    """Shorten every token's vector that is longer than `epsilon`."""
    for delta in deltas:
        delta.div_((delta.norm(dim=-1, keepdim=True) / epsilon).clamp(min=1))


def unlikelihood(logprobs: Tensor) -> Tensor:
    """Log (1 - p) from log p, (N,); 0, and without a gradient, of what is unlikely already."""
    return torch.where(logprobs.detach() < UNLIKELY, 0.0, log_rest(logprobs))


def _of_chosen(batch: Batch) -> Tensor:
    """Whether each target is of a chosen answer, (targets,)."""
    length = batch.input_ids.shape[1]
    edges = torch.tensor([[row * length + a, row * length + b] for row, a, b in batch.documents[0::2]])
    edges = edges.to(batch.supervised.device)
    return ((batch.supervised >= edges[:, :1]) & (batch.supervised < edges[:, 1:])).any(0)
