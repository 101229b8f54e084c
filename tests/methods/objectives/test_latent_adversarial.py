"""Latent adversarial training's own statements: its loss at no and at one step, bounded pushes, hooks that go away."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.methods.objectives.latent_adversarial import unlikelihood
from lrft.model.attention import register
from lrft.model.causal_lm import CausalLM
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.told import objective, pair

PAIRS = [([5, 9, 2, 7], [3, 8, 1], [4, 4]), ([1, 6], [2], [9, 3, 7, 5])]


def made():
    """A random two-layer Llama with LoRA that has moved on every linear map of its layers."""
    register()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=12, num_key_value_heads=2, **shape)
    model = CausalLM(LlamaForCausalLM._from_config(config, attn_implementation="segmented"))
    model.requires_grad_(False)
    settings = ADAPTERS.declared("lora").config(method="lora", rank=2, alpha=4)
    for name, layer in list(model.hf.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            layer.weight.normal_(std=0.3)
            adapter = ADAPTERS.get("lora")(settings, Site(name, layer.in_features, layer.out_features))
            torch.nn.init.normal_(adapter.B, std=0.1)
            model.hf.model.set_submodule(
                name, Adapted(QUANTIZERS.get("none")(layer.weight.detach()), adapter)
            )
    model.hf.lm_head.weight.normal_(std=1.0)
    return model.train()


def batch():
    rows = [pair(*one) for one in PAIRS]
    return collate([rows], 0, None, [[0, 1]])


def run_of():
    run = SimpleNamespace(metrics={}, parameters=[])
    run.record = lambda **found: run.metrics.update(found)
    return run


def logprobs(model, prompt, tokens, pushes=None):
    """Of an answer's tokens, one document alone, with a vector per prompt token added after some layers."""
    handles = []
    for number, push in (pushes or {}).items():

        def add(_, inputs, output, push=push):
            hidden = output[0] if isinstance(output, tuple) else output
            moved = torch.cat([hidden[:, : len(prompt)] + push, hidden[:, len(prompt) :]], 1)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handles.append(model.hf.model.layers[number].register_forward_hook(add))
    document = Encoded(prompt + tokens, [False] * len(prompt) + [True] * len(tokens))
    logits = model(collate([[document]], 0, None, [[0]]))[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return torch.stack([logits[len(prompt) - 1 + k, token] for k, token in enumerate(tokens)])


def direct(model, pushes, toward=1.0, away=1.0, clean=0.0):
    total = 0.0
    for (prompt, chosen, rejected), push in zip(PAIRS, pushes, strict=True):
        total = total - toward * logprobs(model, prompt, chosen, push).sum()
        against = logprobs(model, prompt, rejected, push)
        total = total - away * ((-torch.expm1(against)).log() * (against >= -5)).sum()
        total = total - clean * logprobs(model, prompt, chosen).sum()
    return total


def gradients(model, loss):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def test_without_a_radius_it_is_a_supervised_and_an_unlikelihood_term():
    model, weights = made(), {"toward": 0.7, "away": 1.3, "clean": 0.5}
    loss, expected = (
        objective("latent_adversarial", epsilon=0.0, **weights)(model, batch()),
        direct(model, [{}, {}], **weights),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("epsilon", [10.0, 0.1])
def test_one_step_is_one_of_adam_from_nothing_and_the_model_learns_against_it(epsilon):
    """Adam's first step is the rate times the gradient's sign: 16 entries of 0.05, of norm 0.2."""
    model, pushes = made(), []
    for prompt, _, rejected in PAIRS:
        zero = {k: torch.zeros(len(prompt), 16, requires_grad=True) for k in (0, 1)}
        attack = -logprobs(model, prompt, rejected, zero).sum()
        found = dict(zip(zero, torch.autograd.grad(attack, list(zero.values())), strict=True))
        moved = {k: -0.05 * g / (g.abs() + 1e-8) for k, g in found.items()}
        pushes.append(
            {
                k: d * (epsilon / d.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
                for k, d in moved.items()
            }
        )
    loss = objective("latent_adversarial", steps=1, epsilon=epsilon)(model, batch())
    expected = direct(model, pushes)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-3)
    assert abs(loss.item() - direct(model, [{}, {}]).item()) > 1e-2
    for a, b in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("epsilon", "away"), [(2.0, 0.0), (0.3, 0.0), (2.0, 1.5)])
def test_five_steps_are_those_of_adamw_with_its_decay(epsilon, away):
    """The authors name torch's AdamW and no decay, which is 0.01 then; after each step vectors are shortened."""
    model, pushes = made().eval(), []
    for prompt, chosen, rejected in PAIRS:
        found = {k: torch.nn.Parameter(torch.zeros(len(prompt), 16)) for k in (0, 1)}
        optimizer = torch.optim.AdamW(found.values(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = -logprobs(model, prompt, rejected, found).sum()
            against = logprobs(model, prompt, chosen, found)
            (loss - away * ((-torch.expm1(against)).log() * (against >= -5)).sum()).backward()
            optimizer.step()
            for push in found.values():
                push.data.div_((push.data.norm(dim=-1, keepdim=True) / epsilon).clamp(min=1))
        pushes.append({k: push.detach() for k, push in found.items()})
    model.zero_grad()
    settings = {"steps": 5, "epsilon": epsilon, "rate": 0.1, "attack_away": away}
    loss = objective("latent_adversarial", **settings)(model, batch())
    expected = direct(model, pushes)
    torch.testing.assert_close(loss, expected, rtol=5e-5, atol=0)
    for a, b in zip(gradients(model, loss), gradients(model, expected), strict=True):
        # Adam's first step is a sign, which rounding decides where a gradient is next to 0.
        assert (a - b).norm() < 5e-3 * b.norm()


def test_a_rejected_token_that_is_unlikely_already_is_let_be():
    """As the loss of the authors' code, which takes its logarithm as 0 below a log-probability of -5."""
    logprobs = torch.tensor([-0.1, -4.9, -5.1, -30.0], requires_grad=True)
    found = unlikelihood(logprobs)
    expected = [math.log(1 - math.exp(-0.1)), math.log(1 - math.exp(-4.9)), 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    found.sum().backward()
    assert (logprobs.grad != 0).tolist() == [True, True, False, False]


def test_more_steps_push_further_and_nothing_of_it_stays():
    model, given, run = made(), batch(), run_of()
    before = model(given).detach()
    objective("latent_adversarial", steps=8)(model, given, run)
    assert run.metrics["attack_after"] < run.metrics["attack_before"] - 0.1
    direct_before = -sum(logprobs(model, prompt, rejected).sum() for prompt, _, rejected in PAIRS) / 6
    torch.testing.assert_close(run.metrics["attack_before"], direct_before.detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(model(given).detach(), before)
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks for layer in model.hf.model.layers)


def test_layers_that_are_not_there_and_recomputed_ones_are_refused():
    with pytest.raises(RecipeError, match="names layer 2, and the model has 2, counted from 0"):
        objective("latent_adversarial", layers=[0, 2])(made(), batch())
    with pytest.raises(DataError, match="latent_adversarial compares two answers"):
        objective("latent_adversarial")(made(), collate([pair(*PAIRS[0]).documents()[:1]], 0, None, [[0]]))
    with pytest.raises(RecipeError, match="computes layers again without what latent_adversarial added"):
        load_recipe("smoke/latent_adversarial", ["model.activation_checkpointing=true"])
