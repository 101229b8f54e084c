"""Self-training's own statements: its weights are those of a gradient step, its two phases, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrft.api.training.train import train
from lrft.core.params import ParamInfo
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.told import Table, batch_of, drawn, judged, objective

DATA = Path(__file__).parents[3] / "recipes" / "data" / "unpaired"
ROWS = [
    judged([0, 1], [2, 3, 1], True),
    judged([3], [1, 1], False),
    judged([2], [0, 2, 2, 3], False),
    judged([1, 1], [3, 0], False),
    judged([0], [2, 1], True),
    judged([0], [2, 1], False),
]
LABELLED, PSEUDO = [0, 4], [1, 2, 3, 5]


def made(student=2, teacher=7, **settings):
    found = objective("self_training", **settings)
    found.teacher = Table(drawn(teacher), drawn(teacher))
    return Table(drawn(0), drawn(student)), found


def run_of(model, step=0, total=10, extended=0):
    infos = [ParamInfo(n, p, "lora_B", "table") for n, p in model.named_parameters() if p.requires_grad]
    run = SimpleNamespace(metrics={}, parameters=infos, step=step, planned_steps=total)
    run.total_steps = total + extended
    run.record = lambda **found: run.metrics.update(found)
    return run


def of_row(logits, row, teacher):
    """c of a labelled row and l of another, from logits (token, token before), as the paper writes them."""
    student, told = logits.mT.log_softmax(-1), torch.tensor(drawn(teacher)).log()
    ids = row.input_ids
    places = [k for k in range(1, len(ids)) if row.supervised[k]]
    if row.wanted:
        return -sum(student[ids[k - 1], ids[k]] for k in places) / len(places)
    return sum(
        (told[ids[k - 1]].exp() * (told[ids[k - 1]] - student[ids[k - 1]])).sum() for k in places
    ) / len(places)


def logits_of(model):
    """Those of the student, (token, token before)."""
    return (model.table.base.weight() + model.logits @ model.table.adapter.A).detach()


def expected_weights(model, teacher=7, rate=0.1):
    """By the definition: the derivative of the labelled loss after a step whose weights are 0, by each weight."""
    base = model.table.base.weight()
    start = [one.detach().clone().requires_grad_(True) for one in (model.logits, model.table.adapter.A)]
    weights = torch.zeros(len(PSEUDO), requires_grad=True)
    logits = base + start[0] @ start[1]
    inner = sum(w * of_row(logits, ROWS[k], teacher) for w, k in zip(weights, PSEUDO, strict=True))
    gradients = torch.autograd.grad(inner, start, create_graph=True)
    B, A = (one - rate * gradient for one, gradient in zip(start, gradients, strict=True))
    outer = sum(of_row(base + B @ A, ROWS[k], teacher) for k in LABELLED) / len(LABELLED)
    helps = (-torch.autograd.grad(outer, weights)[0]).clamp(min=0)
    return helps / helps.sum()


def test_weights_are_the_derivatives_of_the_labelled_loss_after_a_step():
    model, of = made()
    found = of._weights(model, batch_of(*ROWS), torch.tensor([row.wanted for row in ROWS]), run_of(model))
    expected = expected_weights(model)
    assert 0 < int((expected > 0).sum()) < len(PSEUDO)  # some help and some do not
    torch.testing.assert_close(found[PSEUDO], expected, rtol=1e-4, atol=1e-5)
    assert found[LABELLED].tolist() == [0, 0]


def test_the_first_steps_learn_weighted_pseudo_labels_and_the_last_labelled_rows_alone():
    model, of = made()
    run = run_of(model, step=7)
    weights = expected_weights(model)
    logits = logits_of(model)
    apart = [of_row(logits, ROWS[k], 7) for k in PSEUDO]
    loss = of(model, batch_of(*ROWS), run)
    expected = len(ROWS) * sum(w * one for w, one in zip(weights, apart, strict=True))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)
    assert run.metrics["pseudo_rows"] == 4
    torch.testing.assert_close(run.metrics["pseudo_loss"], sum(apart) / 4, rtol=1e-4, atol=1e-5)
    assert float(run.metrics["taught"]) == int((weights > 0).sum()) / 4
    run = run_of(model, step=8)  # round(0.75 * 10), and what follows
    last = of(model, batch_of(*ROWS), run)
    mean = sum(of_row(logits, ROWS[k], 7) for k in LABELLED) / len(LABELLED)
    torch.testing.assert_close(last.detach(), len(ROWS) * mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.metrics["labelled_loss"], mean, rtol=1e-4, atol=1e-5)


def test_with_labelled_rows_alone_at_the_end_it_is_cross_entropy():
    """One answer of the same length each: the mean over rows is that over tokens."""
    rows = [judged([0], [2, 1], True), judged([3], [1, 0], True)]
    model, of = made(finetune=1.0)
    loss = of(model, batch_of(*rows), run_of(model)) / of.divisor(SimpleNamespace(examples=2, targets=4))
    loss.backward()
    kept = model.logits.grad.clone()
    model.zero_grad()
    plain = objective("cross_entropy")(model, batch_of(*rows)) / 4
    plain.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(kept, model.logits.grad)


def test_without_labelled_rows_beside_them_pseudo_labels_count_alike_and_this_is_told():
    rows = [ROWS[k] for k in PSEUDO]
    model, of = made()
    run = run_of(model)
    weights = of._weights(model, batch_of(*rows), torch.zeros(4, dtype=torch.bool), run)
    assert weights.tolist() == [0.25] * 4
    assert run.metrics["unweighted"] == 4


def test_a_teacher_that_says_the_same_teaches_nothing():
    model, of = made(student=7)
    loss = of(model, batch_of(*ROWS), run_of(model))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_weighing_leaves_gradients_alone():
    model, of = made()
    of._weights(model, batch_of(*ROWS), torch.tensor([row.wanted for row in ROWS]), run_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_that_do_not_say_and_a_recipe_without_a_teacher_are_refused():
    model, of = made()
    with pytest.raises(DataError, match="format: unpaired"):
        of(model, replace(batch_of(*ROWS), wanted=()), run_of(model))
    with pytest.raises(RecipeError, match="name a run on labelled rows"):
        load_recipe("smoke/self_training", ["objective.teacher=null"])


def test_steps_that_are_added_later_change_none_of_those_before():
    model, of = made()
    found = [of(model, batch_of(*ROWS), run_of(model, step=8, extended=more)).detach() for more in (0, 30)]
    assert torch.equal(*found)


def trained(tiny, rows, out, **more):
    """A run of four steps, the last of which learns labelled rows."""
    given = {
        "model.name": tiny(),
        "quantization": "none",
        "objective.teacher": tiny("llama", tied=False),
        "objective.finetune": 0.25,
        "data.train": rows,
        "data.eval.limit": 4,
        "train.max_steps": 4,
        "train.batch_size": 2,
        "train.device": "cpu",
        **more,
    }
    train(load_recipe("smoke/self_training", [f"{key}={value}" for key, value in given.items()]), out)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_rows_of_which_none_helps_are_no_fault_of_the_data_and_told(tiny, tmp_path, capsys):
    """Micro-batches of labelled rows alone, until the steps that learn them."""
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text().splitlines()]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows[:40] if row["label"]))
    losses = trained(tiny, labelled, tmp_path / "run")
    assert losses[:3] == [0, 0, 0] and losses[3] > 0
    assert "the teacher taught nothing" in capsys.readouterr().err
    losses = trained(tiny, DATA / "train.jsonl", tmp_path / "other", **{"train.batch_size": 8})
    assert any(losses[:3]) and "taught nothing" not in capsys.readouterr().err


def test_what_an_adapter_freezes_on_its_way_takes_no_part(tiny, tmp_path):
    adapter = "{method: lamda, rank: 4, alpha: 8, frozen_by: 0.3}"
    assert all(trained(tiny, DATA / "train.jsonl", tmp_path / "run", adapter=adapter)[3:])


def test_processes_that_have_to_make_equally_many_passes_are_refused():
    with pytest.raises(RecipeError, match="rows take passes of their own"):
        load_recipe("smoke/self_training", ["train.shard_base=true"])


def test_gradients_of_single_rows_that_float16_would_round_to_0_are_refused():
    given = ["model.dtype=float16", "train.device=cuda", "train.deterministic=false"]
    with pytest.raises(RecipeError, match="gradients of single rows are taken without a scale"):
        load_recipe("smoke/self_training", given)
