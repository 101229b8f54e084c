"""What every generator keeps to: one adapter of one seed, shapes, a library left intact, all of it in its state."""

from __future__ import annotations

import pytest
import torch

from lrft.registry.axes import GENERATORS
from tests.methods.generate.made import LAYOUT, draws, generator, library

NAMES = GENERATORS.names()
TRAINED = [name for name in NAMES if name != "softmax_merge"]


def changes(factors):
    return torch.cat([(B @ A).flatten() for A, B in factors.values()])


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_draws_one_adapter_of_the_layers_of_the_library(name):
    made, known = generator(name)
    made.eval()
    first = made.draw(known[0].condition, draws(3))
    assert list(first) == ["a", "b"]
    for site, (A, B) in first.items():
        assert A.shape[1] == LAYOUT.shapes[f"{site}.A"][1] and B.shape[0] == LAYOUT.shapes[f"{site}.B"][0]
        assert A.dtype == B.dtype == torch.float32 and A.isfinite().all() and B.isfinite().all()
    assert torch.equal(changes(first), changes(made.draw(known[0].condition, draws(3))))


@pytest.mark.parametrize("name", NAMES)
def test_another_task_is_another_adapter(name):
    made, known = generator(name)
    made.eval()
    found = [changes(made.draw(one.condition, draws())) for one in known[:2]]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_moves_every_parameter_and_leaves_the_library_as_it_is(name):
    made, known = generator(name)
    before = [(one.samples.clone(), one.condition.clone()) for one in known]
    made.train()
    loss = made.loss(known, draws())
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in made.parameters())
    for one, (samples, condition) in zip(known, before, strict=True):
        assert torch.equal(one.samples, samples) and torch.equal(one.condition, condition)


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_is_drawn_from_what_it_is_given_alone(name):
    made, known = generator(name)
    first = made.loss(known, draws(1))
    torch.rand(3)
    assert torch.equal(first, made.loss(known, draws(1)))
    assert not torch.equal(first, made.loss(known, draws(2)))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_all_that_an_adapter_is_drawn_from(name):
    made, known = generator(name)
    other, _ = generator(name, library(name, seed=1), seed=1)
    other.load_state_dict(made.state_dict())
    found = [one.eval().draw(known[1].condition, draws(5)) for one in (made, other)]
    assert torch.equal(changes(found[0]), changes(found[1]))


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_make_the_loss_smaller(name):
    made, known = generator(name)
    steps, optimizer = 60, made.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    made.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = made.loss(known, draws(step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("name", NAMES)
def test_rates_begin_whole_and_never_rise(name):
    made, known = generator(name)
    steps = made.steps(known)
    rates = [made.rate(step, steps) for step in range(steps)]
    assert rates == sorted(rates, reverse=True) and all(0 <= rate <= 1 for rate in rates)
    assert not rates or rates[0] == 1.0
