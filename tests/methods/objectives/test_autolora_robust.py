"""AutoLoRA beside the authors' lines: which pass gives which gradients, the attack, and the balance that follows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.api.asking.evaluate import evaluate
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.core.adapted import adapted, adapters_off
from lrft.methods.objectives._embedded import Prompts, embedding_of, moved
from lrft.methods.objectives.autolora_robust import AutoLoRaRobust
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from lrft.training.folder import RunFolder
from tests.each import each
from tests.methods.objectives.test_distillation import batch
from tests.methods.objectives.test_distillation import moved as moved_model

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "autolora_robust.yaml"
EPSILON = 0.3


def model_of():
    """Adapters that have moved on the linear layers, norms and head that train."""
    model = moved_model()
    for name, parameter in model.named_parameters():
        if "norm" in name or "lm_head" in name:
            parameter.requires_grad_(True)
    return model


def objective(accuracy=0.0, **settings):
    given = {"epsilon": EPSILON, "step": 0.1, "attack_steps": 4, **settings}
    made = AutoLoRaRobust(AutoLoRaRobust.Config(method="autolora_robust", **given))
    made.accuracy = accuracy
    return made


def kinds(model):
    """Parameters of the adapters, of the head, and others that train."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    lora = [p for n, p in named.items() if ".adapter." in n]
    head = [p for n, p in named.items() if "lm_head" in n]
    return lora, head, [p for n, p in named.items() if ".adapter." not in n and "lm_head" not in n]


def supervised(model, rows):
    return model(rows).flatten(0, 1)[rows.supervised].float()


def attacked(model, rows, config):
    """The attack, as a loop over whole logits."""
    embedding = embedding_of(model)
    size = embedding.weight.square().mean().sqrt()
    delta = torch.zeros(len(Prompts(rows).places), embedding.weight.shape[1])
    with adapters_off(model):
        for _ in range(config.attack_steps):
            delta = delta.detach().requires_grad_(True)
            with moved(embedding, Prompts(rows), delta):
                loss = F.cross_entropy(supervised(model, rows), rows.targets, reduction="sum")
            step = config.step * size * torch.autograd.grad(loss, delta)[0].sign()
            delta = (delta.detach() + step).clamp(-config.epsilon * size, config.epsilon * size)
    return delta


def authors(model, rows, delta, a, scale):
    """Their loss: parameters are frozen by hand between both passes."""
    _, head, theta = kinds(model)
    for p in theta:
        p.requires_grad_(False)
    natural = supervised(model, rows)
    for p in (*theta, *head):
        p.requires_grad_(True)
    with adapters_off(model), moved(embedding_of(model), Prompts(rows), delta):
        robust = supervised(model, rows)
    kl = nn.KLDivLoss(reduction="sum")(F.log_softmax(robust, 1), F.softmax(natural, 1))
    first, second = (F.cross_entropy(one, rows.targets, reduction="sum") for one in (natural, robust))
    return (1 - a) * first + a * second + scale * a * kl


@each("a", [0.3, 1.0])
def test_loss_gradients_and_attack_are_those_of_the_authors(a):
    model, rows, made = model_of(), batch(), objective(a)
    delta = attacked(model, rows, made.config)
    torch.testing.assert_close(
        made._attack(model, embedding_of(model), rows, Prompts(rows), noisy=False), delta
    )
    trained = [p for kind in kinds(model) for p in kind]
    loss = made(model, rows)
    found = torch.autograd.grad(loss, trained)
    expected = authors(model, rows, delta, a, 6.0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, torch.autograd.grad(expected, trained), rtol=1e-3, atol=1e-3)
    assert all(p.requires_grad for p in trained) and all(site.enabled for _, site in adapted(model))


def test_an_accuracy_of_0_is_cross_entropy_of_the_adapters_alone_and_of_1_without_divergence_of_the_base_alone():
    model, rows = model_of(), batch()
    lora, head, theta = kinds(model)
    plain = CrossEntropy(CrossEntropy.Config(method="cross_entropy"))(model, rows)
    first = objective(0.0)(model, rows)
    torch.testing.assert_close(first, plain)
    first.backward()
    assert all(bool(p.grad.any()) for p in (*lora, *head)) and not any(bool(p.grad.any()) for p in theta)
    model.zero_grad()
    objective(1.0, scale=0.0)(model, rows).backward()
    assert all(bool(p.grad.any()) for p in (*theta, *head)) and not any(bool(p.grad.any()) for p in lora)


def test_an_attack_stays_in_its_bounds_makes_the_base_worse_and_touches_prompts_alone():
    model, rows = model_of(), batch()
    made, embedding, prompts = objective(), embedding_of(model), Prompts(rows)
    delta = made._attack(model, embedding, rows, prompts, noisy=True)
    size = embedding.weight.square().mean().sqrt()
    assert delta.abs().max() <= EPSILON * size * (1 + 1e-6)
    length = rows.input_ids.shape[1]
    firsts = [min(t for t in rows.supervised.tolist() if t // length == row) for row, _, _ in rows.documents]
    assert prompts.places.tolist() == [
        k for first in firsts for k in range(first // length * length, first + 1)
    ]
    with adapters_off(model), torch.no_grad():
        before = CrossEntropy(CrossEntropy.Config(method="cross_entropy"))(model, rows)
        with moved(embedding, prompts, delta):
            after = CrossEntropy(CrossEntropy.Config(method="cross_entropy"))(model, rows)
    assert after > before * 1.05
    assert not any(module._forward_hooks for module in model.modules())


def run_at(epoch, step=1, ends=(9,)):
    sites = [("s", SimpleNamespace(adapter=SimpleNamespace(reset=lambda: dropped.append(step))))]
    dropped = []
    run = SimpleNamespace(
        metrics={"epoch": epoch}, step=step, total_steps=ends[-1], summed=lambda counts: counts
    )
    run.at_an_end = step in ends
    run.device, run.adapted, run.dropped = torch.device("cpu"), lambda: iter(sites), dropped
    return run


def test_the_accuracy_is_that_of_the_last_quarter_and_goes_on_after_a_resume():
    made = objective()
    steps = [(0.1, (3, 10), 0.3), (0.2, (5, 10), 0.4), (0.3, (9, 10), 17 / 30), (0.4, (0, 10), 17 / 30)]
    steps += [(0.55, (10, 10), 0.5), (0.7, (1, 10), 0.5), (0.8, (2, 10), 0.15)]
    for epoch, counts, expected in steps:
        made.counts = [torch.tensor(counts)]
        made.after_step(run_at(epoch))
        assert made.accuracy == pytest.approx(expected), epoch
        again = objective()
        again.load_state_dict(made.state_dict())
        made = again
    assert not run_at(1.0).dropped
    last = run_at(1.0, step=9)
    made.after_step(last)
    assert last.dropped == [9]
    before = run_at(0.5, step=4, ends=(4, 9))  # which was the last until the run was made longer
    made.after_step(before)
    assert before.dropped == [4]


def test_what_cannot_be_dropped_or_is_computed_again_is_refused():
    given = ["model.name=x/y"]
    for more, said in (
        (
            ["model.activation_checkpointing=true"],
            r"model\.activation_checkpointing: computes layers again when",
        ),
        (["init=pissa"], r"init: .*the base keeps the pretrained weight|kept_base"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe(SMOKE, [*given, *more])


@pytest.mark.slow
def test_a_finished_run_is_the_base_with_the_weights_that_trained(tiny, tmp_path):
    small = [f"model.name={tiny()}", "train.max_steps=6", "data.train.limit=12", "train.batch_size=4"]
    small += ["train.device=cpu", "data.eval.limit=4", "optimizer.lr=0.01", "train.save_every=2"]
    train(load_recipe(SMOKE, small), tmp_path / "run")
    _, _, adaptation = open_run(RunFolder(tmp_path / "run"))
    assert all(not site.adapter.B.any() for _, site in adapted(adaptation.model))
    found = evaluate(tmp_path / "run", baseline=True)
    assert found["adapter"]["loss"].metrics["loss"] < found["baseline"]["loss"].metrics["loss"]
    _, _, middle = open_run(_at(tmp_path / "run", "step-4"))
    assert any(bool(site.adapter.B.any()) for _, site in adapted(middle.model))


def _at(run, name):
    folder = RunFolder(run)
    folder.chosen = run / "checkpoints" / name
    return folder
