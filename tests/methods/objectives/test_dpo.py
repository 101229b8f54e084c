"""DPO's own statements: the paper's numbers, a reference that is the same model, and pairs that stay together."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from lrft.core.adapted import Adapted, adapted
from lrft.core.batch import Batch
from lrft.core.less import Less
from lrft.core.params import ParamInfo, Site
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.steps import TrainData
from lrft.model.attention import register
from lrft.model.causal_lm import CausalLM
from lrft.ops.loss import Head, target_logprobs
from lrft.registry.axes import ADAPTERS, OBJECTIVES, QUANTIZERS
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.told import Table

VOCABULARY = 61
BETA = 0.3
VARIANTS = [
    {},
    {"label_smoothing": 0.2},
    {"loss": "ipo"},
    {"loss": "hinge"},
    {"logprob": "mean"},
    {"loss": "ipo", "logprob": "mean"},
]


def objective(**settings):
    cls = OBJECTIVES.get("dpo")
    return cls(cls.Config(method="dpo", **{"beta": BETA, **settings}))


def run_of(model):
    run = SimpleNamespace(parameters=[], metrics={})
    run.record = lambda **found: run.metrics.update(found)
    run.parameters = [ParamInfo(name, p, "lora_A", "site") for name, p in trained(model).items()]
    return run


def llama(**settings):
    """A random two-layer Llama that says different things after different prompts."""
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **shape, **settings)
    torch.manual_seed(0)
    hf = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    for parameter in hf.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=1.2 / parameter.shape[-1] ** 0.5)
    return hf.requires_grad_(False)


def packed(hf):
    """A copy of `hf` that takes several documents a row."""
    register()
    model = CausalLM(copy.deepcopy(hf))
    model.hf.set_attn_implementation("segmented")
    return model


def policy_of(hf, residual=None, dropout=0.0):
    """LoRA on every linear layer of a copy of `hf`: B = 0, or a start that the base gave up in one of two ways."""
    model = packed(hf)
    dense, lora = QUANTIZERS.get("none"), ADAPTERS.get("lora")
    config = ADAPTERS.declared("lora").config(method="lora", rank=3, alpha=6, dropout=dropout)
    for name, layer in list(model.hf.model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight.detach()
        adapter, start = lora(config, Site(name, layer.in_features, layer.out_features)), None
        if residual is not None:
            nn.init.normal_(adapter.B, std=0.2)
            start = copy.deepcopy(adapter)
        if residual == "rewrite":
            weight = weight - start.delta_weight(weight)
        base = dense(weight) if start is None else Less(dense(weight), start, residual == "anchor")
        model.hf.model.set_submodule(name, Adapted(base, adapter))
    return model


@torch.no_grad()
def move(model, seed=1, std=0.1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.add_(std * torch.randn(parameter.shape, generator=generator))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def pair(prompt, chosen, rejected, seed):
    """Random tokens of the given lengths; both documents begin with the same prompt."""
    draw = torch.Generator().manual_seed(seed)
    asked, c, r = (
        torch.randint(1, VOCABULARY, (n,), generator=draw).tolist() for n in (prompt, chosen, rejected)
    )
    mask = [False] * prompt
    ids = asked + c + asked + r
    return Encoded(
        ids,
        mask + [True] * chosen + mask + [True] * rejected,
        length=len(ids),
        parts=(prompt + chosen, prompt + rejected),
    )


PAIRS = [pair(4, 5, 3, 1), pair(2, 1, 6, 2), pair(7, 2, 2, 3), pair(3, 4, 4, 4), pair(5, 3, 7, 5)]


def batch_of(rows):
    """Each inner list is one row of the batch, of several pairs."""
    return collate([[PAIRS[k] for k in row] for row in rows], 0, None, rows)


def swapped(encoded):
    first, second = encoded.documents()
    return Encoded(
        second.input_ids + first.input_ids, second.supervised + first.supervised, parts=encoded.parts[::-1]
    )


def answer_logprob(hf, document, mean=False):
    """The direct way: one document, all logits, the answer's tokens picked out."""
    ids = torch.tensor([document.input_ids])
    logp = hf(input_ids=ids).logits[0].log_softmax(-1)
    hf_positions = [k for k, learnt in enumerate(document.supervised) if learnt]
    found = torch.stack([logp[k - 1, document.input_ids[k]] for k in hf_positions])
    return found.mean() if mean else found.sum()


def direct_loss(policy, reference, pairs, loss="sigmoid", label_smoothing=0.0, logprob="sum"):
    total = 0.0
    for encoded in pairs:
        chosen, rejected = encoded.documents()
        mean = logprob == "mean"
        with torch.no_grad():
            base = answer_logprob(reference, chosen, mean) - answer_logprob(reference, rejected, mean)
        h = answer_logprob(policy, chosen, mean) - answer_logprob(policy, rejected, mean) - base
        if loss == "ipo":
            total = total + (h - 1 / (2 * BETA)) ** 2
        elif loss == "hinge":
            total = total + torch.clamp(1 - BETA * h, min=0)
        else:
            p = torch.sigmoid(BETA * h)
            total = total - (1 - label_smoothing) * p.log() - label_smoothing * (1 - p).log()
    return total


def merged(model, hf):
    """A plain transformers model with the policy's weights, all of them trainable."""
    plain = copy.deepcopy(hf).requires_grad_(True)
    for name, site in adapted(model.hf.model):
        plain.model.get_submodule(name).weight.data.copy_(site.merged_weight())
    return plain


def gradients(model):
    return {name: p.grad.clone() for name, p in trained(model).items()}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_loss_and_gradients_are_those_of_two_models_run_on_single_answers(settings):
    hf = llama()
    model = policy_of(hf)
    move(model)
    loss = objective(**settings)(model, batch_of([[0, 1], [2], [3, 4]]))
    loss.backward()
    plain = merged(model, hf)
    expected = direct_loss(plain, copy.deepcopy(hf), PAIRS, **settings)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for name, site in adapted(model.hf.model):
        dW, lora = plain.model.get_submodule(name).weight.grad, site.adapter
        dA, dB = lora.scaling * lora.B.mT @ dW, lora.scaling * dW @ lora.A.mT
        torch.testing.assert_close(lora.A.grad, dA, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(lora.B.grad, dB, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("residual", [None, "rewrite", "anchor"])
def test_at_step_0_the_loss_is_log_2_a_pair_and_pulls_by_half_of_beta(residual):
    hf = llama()
    model = policy_of(hf, residual)
    loss = objective()(model, batch_of([[0], [1], [2], [3, 4]]))
    loss.backward()
    assert loss.item() == pytest.approx(5 * math.log(2), rel=1e-5)
    plain = copy.deepcopy(hf).requires_grad_(True)
    pull = sum(
        answer_logprob(plain, d[0]) - answer_logprob(plain, d[1]) for d in map(Encoded.documents, PAIRS)
    )
    (-BETA / 2 * pull).backward()
    for name, site in adapted(model.hf.model):
        dB = site.adapter.scaling * plain.model.get_submodule(name).weight.grad @ site.adapter.A.mT
        torch.testing.assert_close(site.adapter.B.grad, dB, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("residual", [None, "rewrite", "anchor"])
def test_the_reference_stays_the_pretrained_model_while_the_adapter_moves(residual):
    hf = llama()
    model = policy_of(hf, residual)
    move(model)
    loss = objective()(model, batch_of([[0, 1, 2], [3, 4]]))
    torch.testing.assert_close(loss, direct_loss(merged(model, hf), hf, PAIRS).detach(), rtol=1e-4, atol=1e-4)


def test_folding_the_adapter_into_the_base_does_not_move_the_reference():
    hf = llama()
    model = policy_of(hf)
    move(model)
    before = objective()(model, batch_of([[0, 1, 2]]))
    for _, site in adapted(model):
        site.fold()
    after = objective()(model, batch_of([[0, 1, 2]]))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert abs(after.item() - 3 * math.log(2)) > 1e-2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 1.0}, math.log(5 / 4)),
        ({"beta": 0.5}, math.log(3 / 2)),
        ({"beta": 1.0, "label_smoothing": 0.1}, 0.9 * math.log(5 / 4) + 0.1 * math.log(5)),
        ({"beta": 0.5, "loss": "ipo"}, (math.log(4) - 1) ** 2),
        ({"beta": 0.5, "loss": "hinge"}, 1 - math.log(2)),
        ({"beta": 2.0, "loss": "hinge"}, 0.0),
    ],
    ids=str,
)
def test_numbers_worked_out_by_hand(settings, expected):
    """The chosen token went from 1/4 to 1/2, the rejected one from 1/2 to 1/4: h = log 4."""
    model = Table([0.125, 0.25, 0.5, 0.125], [0.125, 0.5, 0.25, 0.125])
    encoded = Encoded([0, 1, 0, 2], [False, True, False, True], parts=(2, 2))
    loss = objective(**settings)(model, collate([[encoded]], 0, None, [[0]]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_swapping_the_answers_turns_the_margin_around():
    hf = llama()
    model = policy_of(hf)
    move(model)
    there, back = run_of(model), run_of(model)
    ipo = objective(loss="ipo")
    loss = ipo(model, collate([[PAIRS[0]]], 0, None, [[0]]), there)
    other = ipo(model, collate([[swapped(PAIRS[0])]], 0, None, [[0]]), back)
    margin = there.metrics["reward_margin"]
    assert margin.abs() > 1e-2
    torch.testing.assert_close(back.metrics["reward_margin"], -margin, rtol=1e-5, atol=1e-6)
    assert there.metrics["reward_accuracy"] + back.metrics["reward_accuracy"] == 1
    # (h - t)^2 - (-h - t)^2 = -4 h t
    torch.testing.assert_close(loss - other, -4 * margin / BETA / (2 * BETA), rtol=1e-4, atol=1e-4)


def test_metrics_are_means_over_the_pairs_of_the_step_and_wait_for_no_device():
    hf = llama()
    model = policy_of(hf)
    move(model)
    dpo, whole, parts = objective(), run_of(model), run_of(model)
    dpo(model, batch_of([[0, 1], [2, 3], [4]]), whole)
    for rows in ([[0]], [[1, 2]], [[3], [4]]):
        dpo(model, batch_of(rows), parts)
    assert parts.metrics.pop("pairs") == whole.metrics.pop("pairs") == 5
    assert whole.metrics.keys() == {"reward_margin", "reward_accuracy", "reward_chosen"}
    for name, value in whole.metrics.items():
        assert value.shape == () and not value.requires_grad
        torch.testing.assert_close(parts.metrics[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2, 5])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("join", [True, False])
def test_a_step_is_the_mean_over_its_pairs_however_it_is_cut(packing, accumulation, join):
    model = policy_of(llama())
    move(model)
    made = {"batch_size": 5 // accumulation or 1, "max_length": 40 if packing else 20, "seed": 0, "pad_id": 0}
    data = TrainData(PAIRS, accumulation=5, packing=packing, join=join, **made)
    step, dpo = data.at(0), objective()
    assert step.examples == dpo.divisor(step) == 5
    loss = sum(dpo(model, batch) for batch in step.micro_batches) / dpo.divisor(step)
    single = [dpo(model, batch_of([[k]])) for k in range(5)]
    torch.testing.assert_close(loss, torch.stack(single).mean(), rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_changes_no_gradient():
    model, batch = policy_of(llama()), batch_of([[0, 1], [2]])
    move(model)
    model.train()
    loss = objective()(model, batch)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = objective()(model, batch)
    again.backward()
    assert torch.equal(again, loss)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_the_reference_runs_first_without_dropout_or_gradient_and_leaves_every_mode_as_it_was():
    model = policy_of(llama(attention_dropout=0.5), dropout=0.5).train()
    layer = model.hf.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    site = next(site for _, site in adapted(model))
    site.register_forward_hook(lambda m, x, y: seen.append((m.enabled, m.training, torch.is_grad_enabled())))
    torch.manual_seed(5)
    objective()(model, batch_of([[0], [1]]))
    assert seen == [(False, False, False), (True, True, True)]
    assert not layer.training and [module.training for module in model.modules()] == modes


def test_an_error_in_the_reference_pass_leaves_the_adapters_on_and_the_modes_as_they_were(monkeypatch):
    model = policy_of(llama()).train()
    monkeypatch.setattr(model.hf.model, "forward", lambda **given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective()(model, batch_of([[0]]))
    assert all(site.enabled and site.training for _, site in adapted(model))


def test_without_adapters_yet_the_gradient_is_that_at_step_0():
    hf = llama()
    model = packed(hf)
    model.requires_grad_(True)
    loss = objective()(model, batch_of([[0], [1]]))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-5)
    plain = copy.deepcopy(hf).requires_grad_(True)
    pull = sum(
        answer_logprob(plain, d[0]) - answer_logprob(plain, d[1]) for d in map(Encoded.documents, PAIRS[:2])
    )
    (-BETA / 2 * pull).backward()
    for ours, theirs in zip(model.hf.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_training_comes_to_prefer_the_chosen_answers():
    model = policy_of(llama())
    run, dpo, batch = run_of(model), objective(beta=0.1), batch_of([[0, 1, 2, 3, 4]])
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.01)
    for _ in range(12):
        run.metrics.clear()
        optimizer.zero_grad()
        loss = dpo(model, batch, run) / 5
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4 and run.metrics["reward_accuracy"] == 1
    assert set(vars(dpo)) == {"config"}  # nothing to save


def test_rows_that_are_not_pairs_and_a_base_that_trains_are_refused():
    model = policy_of(llama())
    single = [document for encoded in PAIRS for document in encoded.documents()]
    with pytest.raises(DataError, match=r"2 rows hold 2 texts; write data\.format: preference"):
        objective()(model, collate([single[:2]], 0, None, [[0, 1]]))
    run = run_of(model)
    run.parameters.append(ParamInfo("norm", nn.Parameter(torch.ones(2)), "vector"))
    with pytest.raises(RecipeError, match=r"objective\.method: dpo measures against the base"):
        objective()(model, batch_of([[0]]), run)


@pytest.mark.parametrize(
    "settings",
    [{"loss": "ipo", "label_smoothing": 0.1}, {"label_smoothing": 0.5}, {"beta": 0.0}, {"loss": "dpo"}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        objective(**settings)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_token_logprobs_have_the_gradients_of_the_whole_logits_without_keeping_them(
    frozen, softcap, bias, scale
):
    torch.manual_seed(0)
    module = nn.Linear(16, 50, bias=bias).requires_grad_(not frozen)
    hidden, targets = torch.randn(70, 16, requires_grad=True), torch.randint(0, 50, (70,))
    weights, head = torch.randn(70), Head(module, softcap, scale)
    with Largest() as seen:
        found = target_logprobs(hidden, head, targets, chunk=16)
        (found * weights).sum().backward()
    assert seen.numel < 70 * 50
    got = [hidden.grad, *(p.grad for p in module.parameters() if p.requires_grad)]
    hidden.grad = None
    module.zero_grad()
    expected = head.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        got, [hidden.grad, *(p.grad for p in module.parameters() if p.requires_grad)], strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_document_sums_leave_out_what_belongs_to_others():
    documents = ((0, 0, 3), (0, 3, 5), (1, 0, 4))
    supervised = torch.tensor([0, 1, 3, 5, 7])
    empty = torch.zeros(2, 5, dtype=torch.int64)
    batch = Batch(empty, empty, documents, supervised, supervised)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], requires_grad=True)
    sums = batch.document_sums(values)
    assert sums.tolist() == [3.0, 4.0, 24.0]
    (sums * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1, 1, 2, 3, 3]
