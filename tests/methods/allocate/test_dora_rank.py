"""Dynamic rank distribution: closed-form shares of the norm, the published schedule, an exact count."""

import pytest
import torch

from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.methods.allocate.dora_rank import DoRARank, norm_shares, spread
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError
from tests.methods.allocate.allocating import draw_gradients, gates, make_run

TOTAL = 40  # pruning at the steps 6 to 20: p = 0 .. 14


def allocator(**settings) -> DoRARank:
    return DoRARank(DoRARank.Config(**{"target_rank": 4, "every": 4, **settings}))


def advance(run) -> None:
    """One step of the loop on given gradients."""
    run.metrics = {}
    run.fire("before_step")
    draw_gradients(run, run.step)
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad()


def pruned(run) -> torch.Tensor:
    return torch.cat([E == 0 for E in gates(run).values()])


def test_the_shares_of_the_norm_are_those_of_the_materialised_components():
    run = make_run(allocator(), TOTAL)
    for _, module in run.adapted():
        A, z, B = module.adapter.components()
        torch.nn.init.normal_(z)
        singles = torch.stack([z[i] * torch.outer(B[:, i], A[i]) for i in range(6)])
        expected = singles.flatten(1).norm(dim=1) / (singles.sum(dim=0).norm() + 1e-8)
        torch.testing.assert_close(norm_shares(module.adapter), expected.detach(), rtol=1e-4, atol=1e-6)


def test_shares_of_a_change_that_is_zero_are_zero():
    run = make_run(allocator(), TOTAL)
    assert not torch.cat([norm_shares(module.adapter) for _, module in run.adapted()]).any()


def test_scores_are_averaged_from_zero():
    method = allocator(beta=0.7)
    run = make_run(method, TOTAL)
    run.fire("start")
    expected = torch.zeros(18)
    for _ in range(4):
        advance(run)
        shares = torch.cat([norm_shares(module.adapter) for _, module in run.adapted()])
        expected = 0.7 * expected + 0.3 * shares
    torch.testing.assert_close(method.scores, expected)


def test_the_published_count_is_pruned_at_the_published_steps():
    run = make_run(allocator(), TOTAL)
    run.fire("start")
    counts = []
    for _ in range(TOTAL):
        advance(run)
        if "budget" in run.metrics:
            counts.append((run.step, 18 - run.metrics["budget"]))
            assert int(pruned(run).sum()) == counts[-1][1]
    fraction = (6 - 4) / 6
    assert counts == [(6 + p, int(18 * fraction * (p / 14) ** 3)) for p in (0, 4, 8, 12, 14)]
    assert counts[0] == (6, 0)  # nothing, where the authors' code takes one
    assert counts[-1] == (20, 18 - 3 * 4)


def test_what_was_pruned_can_grow_again_until_the_last_pruning_and_never_after():
    run = make_run(allocator(), TOTAL)
    run.fire("start")
    seen = []
    for _ in range(TOTAL):
        advance(run)
        seen.append(pruned(run))
    assert seen[17].any() and not seen[18].any()  # pruned at step 18, p = 12, and moved again by step 19
    assert all(torch.equal(mask, seen[19]) for mask in seen[20:])
    run.fire("finish")
    assert sum(run.summary["ranks"].values()) == 12


def test_the_regularizer_is_the_unbiased_variance_until_the_last_pruning():
    run = make_run(allocator(variance=0.3), TOTAL)
    run.fire("start")
    penalties = []
    for _ in range(TOTAL):
        run.fire("before_step")
        penalties.append([adapter.penalty() for adapter in run.penalized])
        if run.step == 3:
            parts = [module.adapter.components() for _, module in run.adapted()]
            expected = sum(A.var(dim=1).sum() + B.var(dim=0).sum() for A, _, B in parts) / (2 * 6 * 3)
            torch.testing.assert_close(sum(penalties[-1]), 0.3 * expected)
        advance(run)
    assert [p[0] is not None for p in penalties] == [True] * 20 + [False] * 20
    A = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(spread(A, torch.zeros(4, 1), torch.ones(1), 2.0)) == pytest.approx(2.0)  # 1, and not 2/3


def test_the_plan_draws_the_factors_as_published_unless_the_recipe_says_otherwise():
    config, site = ADAPTERS.declared("svd_lora").config, Site("q", 8, 8)
    plan = {
        "free": SitePlan(site, config(method="svd_lora")),
        "fixed": SitePlan(site, config(method="svd_lora", draw="normal")),
        "other": SitePlan(site, ADAPTERS.declared("gated_lora").config(method="gated_lora")),
        "bare": SitePlan(site, None),
    }
    planned = allocator().plan(plan, None)
    assert [plan.setting("draw") for plan in planned.values()] == [
        "kaiming",
        "normal",
        None,
        None,
    ]


def test_shares_that_leave_no_step_to_prune_in_are_refused():
    with pytest.raises(RecipeError, match=r"allocate\.final: warmup 0\.5 and final 0\.5"):
        allocator(warmup=0.5).config.check_length(TOTAL)
