"""What every registered objective promises, whatever its name."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lrft.core.adapted import Adapted
from lrft.core.batch import Sampled
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.steps import TrainData
from lrft.model.attention import register
from lrft.model.causal_lm import CausalLM
from lrft.model.score_head import give_score_head
from lrft.recipe.inside_sections import ScoreHead
from lrft.registry.axes import ADAPTERS, OBJECTIVES, QUANTIZERS

every_objective = pytest.mark.parametrize("name", OBJECTIVES.names())
VOCABULARY, ROWS, PAD = 50, 7, 0
REPLIES = (3, 4)


def made(name):
    objective = OBJECTIVES.get(name)(OBJECTIVES.declared(name).config(method=name))
    objective.replies = REPLIES
    return objective


def model_of(dtype=torch.float32, objective=""):
    """A random two-layer Llama with LoRA that has moved on every linear layer, and what the objective needs beside."""
    register()
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **shape)
    model = CausalLM(LlamaForCausalLM._from_config(config, attn_implementation="segmented"))
    model.to(dtype).requires_grad_(False)
    wanted = {"amortized"} & (OBJECTIVES.declared(objective).requires if objective else set())
    method = next(one for one in ["lora", *ADAPTERS.names()] if wanted <= ADAPTERS.declared(one).provides)
    settings = ADAPTERS.declared(method).config(method=method, rank=3, alpha=6)
    for name, layer in list(model.hf.model.named_modules()):
        if isinstance(layer, nn.Linear):
            adapter = ADAPTERS.get(method)(settings, Site(name, layer.in_features, layer.out_features))
            nn.init.normal_(adapter.B, std=0.1)
            base = QUANTIZERS.get("none")(layer.weight.detach())
            model.hf.model.set_submodule(name, Adapted(base, adapter))
    if objective and "score_head" in OBJECTIVES.declared(objective).requires:
        give_score_head(model, ScoreHead(labels=["a", "b", "c"]), 0)
    return model.train()


def run_of(model, step=0):
    infos = [ParamInfo(n, p, "lora_A", n) for n, p in model.named_parameters() if p.requires_grad]
    run = Run(model, infos, None, None, total_steps=10, seed=3)
    run.step = step
    run.seed_step()
    return run


def rows_for(name):
    """Rows of the kind the objective learns: answers, judged ones, pairs, texts with a label or to embed, or pairs."""
    declared = OBJECTIVES.declared(name)
    requires = declared.requires
    documents = 2 if {"pairs", "replies"} & (requires | declared.provides) else 1
    draw = random.Random(1)
    if "passages" in requires:
        return [texts(draw) for _ in range(ROWS)]
    rows = [row(documents, draw) for _ in range(ROWS)]
    if "replies" in declared.provides:
        return [replied(row, place % 3 > 0) for place, row in enumerate(rows)]
    if "judged" in requires:
        return [replace(row, wanted=place % 3 > 0) for place, row in enumerate(rows)]
    if "score_head" not in requires:
        return rows
    return [
        replace(row, supervised=[False] * row.length, label=float(place % 3))
        for place, row in enumerate(rows)
    ]


def row(documents, draw):
    prompt = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(2, 5))]
    ids, mask, parts = [], [], []
    for _ in range(documents):
        answer = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 5))]
        ids += prompt + answer
        mask += [False] * len(prompt) + [True] * len(answer)
        parts.append(len(prompt) + len(answer))
    return Encoded(ids, mask, length=len(ids), parts=tuple(parts) if documents > 1 else ())


def texts(draw):
    """A query, a passage and one or two others, of a few tokens each."""
    parts = tuple(draw.randint(2, 6) for _ in range(draw.randint(3, 4)))
    ids = [draw.randrange(1, VOCABULARY) for _ in range(sum(parts))]
    return Encoded(ids, [False] * len(ids), length=len(ids), parts=parts, embedded=True)


def batch_of(rows, layout, length=None):
    """With what is known of answers that the model drew, which a row's other kinds of objectives do not look at."""
    batch = collate([[rows[k] for k in line] for line in layout], PAD, length, layout)
    return replace(batch, sampled=Sampled(torch.cos(torch.arange(len(batch.documents)) + 1.0)))


def replied(row, wanted):
    """The second document ends in a reply whether the answer of the first is right."""
    ids, mask = list(row.input_ids), list(row.supervised)
    first = next(k for k in range(row.parts[0], row.length) if mask[k])
    ids[first] = REPLIES[wanted]
    return replace(row, input_ids=ids, wanted=wanted)


ALL = [[k] for k in range(ROWS)]


def loss_and_gradients(name, model, batches, run=None, divisor=1):
    """Sum over the batches, as the loop accumulates it."""
    model.zero_grad()
    total, objective = 0.0, made(name)
    totals = SimpleNamespace(micro_batch_count=len(batches), examples=sum(len(b.examples) for b in batches))
    objective.whole_step(run or run_of(model), totals, lambda: ((batch, True) for batch in batches))
    for batch in batches:
        loss = objective(model, batch, run) / divisor
        loss.backward()
        total += loss.detach()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_equal(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, **tolerance)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_float32_scalar_whose_graph_reaches_every_trained_tensor(name, dtype):
    model = model_of(dtype, name)
    loss = made(name)(model, batch_of(rows_for(name), ALL), run_of(model))
    assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad


@every_objective
def test_without_gradients_it_is_the_same_number(name):
    """Optimizers that only compare losses call it so."""
    model = model_of(objective=name)
    batch = batch_of(rows_for(name), ALL)
    with torch.no_grad():
        bare = made(name)(model, batch, run_of(model))
    assert not bare.requires_grad
    torch.testing.assert_close(bare, made(name)(model, batch, run_of(model)).detach())


@every_objective
def test_packing_changes_nothing(name):
    rows, model = rows_for(name), model_of(objective=name)
    single = loss_and_gradients(name, model, [batch_of(rows, ALL)])
    packed = loss_and_gradients(name, model, [batch_of(rows, [[0, 1, 2], [3, 4], [5, 6]])])
    assert_equal(packed, single, rtol=1e-4, atol=1e-5)


@every_objective
@pytest.mark.parametrize("packing", [True, False])
def test_micro_batches_and_processes_add_up_to_one_batch(name, packing):
    rows, model = rows_for(name), model_of(objective=name)
    settings = {"max_length": 24, "packing": packing, "seed": 0, "pad_id": PAD}
    whole = TrainData(rows, batch_size=ROWS, accumulation=1, **settings).at(0)
    divisor = made(name).divisor(whole)
    expected = loss_and_gradients(name, model, whole.micro_batches, divisor=divisor)
    shares = [
        TrainData(rows, batch_size=1, accumulation=ROWS, world=2, rank=k, **settings).at(0) for k in (0, 1)
    ]
    assert [made(name).divisor(share) for share in shares] == [divisor, divisor]
    parts = [batch for share in shares for batch in share.micro_batches]
    assert len(parts) > 1
    assert_equal(loss_and_gradients(name, model, parts, divisor=divisor), expected, rtol=1e-4, atol=1e-5)


@every_objective
def test_padding_has_no_influence(name):
    rows, model = rows_for(name), model_of(objective=name)
    batch = batch_of(rows, ALL)
    expected = loss_and_gradients(name, model, [batch])
    assert_equal(loss_and_gradients(name, model, [batch_of(rows, ALL, 60)]), expected, rtol=1e-4, atol=1e-5)
    padded = torch.ones_like(batch.input_ids, dtype=torch.bool)
    for line, start, end in batch.documents:
        padded[line, start:end] = False
    assert padded.any()
    other = replace(batch, input_ids=batch.input_ids.masked_fill(padded, 17))
    assert_equal(loss_and_gradients(name, model, [other]), expected, rtol=0, atol=0)


@every_objective
def test_a_step_repeats_bit_for_bit_from_its_number_and_seed(name):
    """So that a resumed run needs nothing from the objective."""
    batch, model = batch_of(rows_for(name), ALL), model_of(objective=name)
    first = loss_and_gradients(name, model, [batch, batch], run_of(model, step=8))
    made(name)(model, batch, run_of(model, step=3))
    again = loss_and_gradients(name, model, [batch, batch], run_of(model, step=8))
    assert_equal(again, first, rtol=0, atol=0)


@every_objective
def test_without_a_run_it_draws_nothing(name):
    batch, model = batch_of(rows_for(name), ALL), model_of(objective=name)
    before = torch.get_rng_state()
    losses = [made(name)(model, batch) for _ in range(2)]
    assert torch.equal(*losses)
    assert torch.equal(torch.get_rng_state(), before)


@every_objective
def test_batch_parameters_and_modes_are_left_as_they_were(name):
    model = model_of(objective=name)
    model.hf.model.layers[0].mlp.eval()
    batch = batch_of(rows_for(name), ALL)
    kept = [copy.deepcopy(batch), {n: p.clone() for n, p in model.state_dict().items()}]
    modes = [module.training for module in model.modules()]
    made(name)(model, batch, run_of(model, step=8)).backward()
    for field in ("input_ids", "position_ids", "supervised", "targets"):
        assert torch.equal(getattr(batch, field), getattr(kept[0], field))
    assert all(torch.equal(p, kept[1][n]) for n, p in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@every_objective
def test_what_it_records_are_single_numbers(name):
    model = model_of(objective=name)
    run = run_of(model)
    made(name)(model, batch_of(rows_for(name), ALL), run)
    for value in run.metrics.values():
        assert isinstance(value, int | float) or (value.shape == () and not value.requires_grad)
