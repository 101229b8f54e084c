"""CoDyRA: both shrinking rules, the thresholds of the authors' loop, and gates that only go down."""

import math

import pytest
import torch

from lrft.methods.allocate.codyra import CoDyRA, released, soft
from lrft.registry.errors import RecipeError
from tests.methods.allocate.allocating import draw_gradients, gates, make_run


def allocator(**settings) -> CoDyRA:
    return CoDyRA(CoDyRA.Config(**settings))


def after_step(run) -> None:
    run.step += 1
    run.metrics = {}
    run.fire("after_step")


def test_the_released_rule_zeroes_below_twice_the_threshold_and_shifts_the_rest():
    g = torch.linspace(-1, 1, 4001)
    k = 0.1
    away = ((g.abs() - 2 * k).abs() > 1e-4) & ((g.abs() - k).abs() > 1e-4)
    expected = torch.where(g.abs() < 2 * k, torch.zeros_like(g), g - k * g.sign())
    torch.testing.assert_close(released(g, k)[away], expected[away])


def test_the_released_rule_is_the_authors_three_assignments():
    torch.manual_seed(0)
    g = torch.randn(500) * 0.01
    p = g.clone()
    p[p > 0.005] -= 0.005
    p[p < -0.005] += 0.005
    p[abs(p) < 0.005] = 0.0
    assert torch.equal(released(g, 0.005), p)


def test_the_soft_rule_is_the_proximal_step_of_the_absolute_value():
    """It minimises (u - g)^2 / 2 + k |u|."""
    g, grid = torch.tensor([-0.7, -0.2, 0.0, 0.1, 0.25, 0.9]), torch.linspace(-1, 1, 20001)
    best = grid[((grid - g[:, None]).square() / 2 + 0.2 * grid.abs()).argmin(dim=1)]
    torch.testing.assert_close(soft(g, 0.2), best, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("total", "dense", "levels"), [(500, 0.5, 50), (517, 0.3, 50), (40, 0.0, 5), (41, 0.25, 7)]
)
def test_thresholds_move_as_in_the_authors_loop(total, dense, levels):
    method = allocator(dense=dense, levels=levels, kappa=0.005)
    lambdas = [0.005 * i / (levels - 1) for i in range(levels)]
    first, every, index, expected = dense * total, int((total - dense * total) // levels), 0, []
    for iteration in range(total):
        if iteration >= first and iteration % every == 0:
            index += 1
        expected.append(lambdas[min(levels - 1, index)])
    found = [method.threshold(method.level(i, total)) for i in range(total)]
    assert found == expected and found[-1] == 0.005


def test_nothing_shrinks_in_the_dense_phase_and_no_gate_grows_without_updates_after_it():
    run = make_run(allocator(levels=5, kappa=0.4), 20, adapter="gated_lora")
    run.fire("start")
    start = torch.cat(list(gates(run).values()))
    counts = []
    for step in range(1, 21):
        after_step(run)
        now = torch.cat(list(gates(run).values()))
        if step <= 11:  # indices up to dense * total = 10, which the authors' loop leaves out
            assert torch.equal(now, start)
        counts.append(int((now != 0).sum()))
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0]


def test_a_run_is_the_optimizer_s_steps_with_a_shrink_after_each():
    run = make_run(allocator(levels=4, kappa=0.3, shrink="soft", dense=0.25), 16, adapter="gated_lora")
    run.fire("start")
    expected = {site: E.clone() for site, E in gates(run).items()}
    method = run.callbacks[0]
    for index in range(16):
        draw_gradients(run, index)
        for site, module in run.adapted():
            expected[site] = expected[site] - 0.1 * module.adapter.E.grad
            if index > 4:
                k = method.threshold(method.level(index, 16))
                expected[site] = expected[site].sign() * (expected[site].abs() - k).clamp_min(0)
        run.optimizer.step()
        after_step(run)
        for site, E in gates(run).items():
            torch.testing.assert_close(E, expected[site])


def test_the_ranks_are_the_gates_that_are_left_and_the_export_has_no_others():
    run = make_run(allocator(levels=5, kappa=0.4), 20, adapter="gated_lora")
    run.fire("start")
    for _ in range(20):
        after_step(run)
    run.fire("finish")
    for site, module in run.adapted():
        torch.nn.init.normal_(module.adapter.B)
        A, B = module.adapter.factors()
        assert len(A) == run.summary["ranks"][site] == int((module.adapter.E != 0).sum())
        x = torch.randn(3, module.adapter.site.in_features)
        torch.testing.assert_close(x @ module.merged_weight().T, module(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(B @ A, module.adapter.composed())
    assert sum(run.summary["ranks"].values()) == run.metrics["rank_total"] < 18
    assert math.isclose(run.metrics["kappa"], 0.4)


def test_thresholds_that_do_not_fit_into_the_run_are_refused():
    with pytest.raises(
        RecipeError, match=r"allocate\.levels: 50 thresholds .* 49 steps .* write 49 or fewer"
    ):
        allocator().config.check_length(99)
