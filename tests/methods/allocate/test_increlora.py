"""IncreLoRA: the score at the composed change, growth without surprises, reserves that learn in advance."""

import pytest
import torch

from lrft.build.starting_plan import plan_without_weights
from lrft.methods.allocate.increlora import IncreLoRA
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.methods.allocate.allocating import SHAPES, gates, make_run

TOTAL = 20
BEFORE, EACH = 2, 3  # warm-up and interval: growth at the steps 3, 6 and 9


def allocator(**settings) -> IncreLoRA:
    given = {
        "target_rank": 3,
        "increment": 1,
        "top_h": 2,
        "init_warmup": BEFORE,
        "interval": EACH,
        **settings,
    }
    return IncreLoRA(IncreLoRA.Config(**given))


def data(step: int, part: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(100 * step + part)
    return [
        (torch.randn(8, width, generator=generator), torch.randn(8, out, generator=generator))
        for width, out in SHAPES
    ]


def backward(run, parts: int = 1) -> None:
    run.seed_step()
    run.fire("before_step")
    for part in range(parts):
        pairs = data(run.step, part)
        for (_, module), (x, y) in zip(run.adapted(), pairs, strict=True):
            ((module(x) - y).square().mean() / parts).backward()
    for adapter in run.penalized:
        penalty = adapter.penalty()
        if penalty is not None:
            penalty.backward()


def advance(run, parts: int = 1) -> None:
    """One step of the loop."""
    backward(run, parts)
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad()


def started(method: IncreLoRA, total: int = TOTAL, rank: int = 6):
    run = make_run(method, total, rank=rank)
    run.fire("start")
    return run


def shown(run) -> dict[str, int]:
    return {site: int(module.adapter.mask.sum()) for site, module in run.adapted()}


@pytest.mark.parametrize("parts", [1, 3])
def test_the_score_is_that_of_the_whole_step_at_the_composed_change(parts):
    """The absolute value is taken of the summed gradient, not summed over the micro-batches."""
    method = allocator()
    run = started(method)
    ibar = uncertainty = 0.0
    for step in range(3):
        backward(run, parts)
        _, module = next(run.adapted())
        delta = module.adapter.composed().detach().requires_grad_(True)
        for part in range(parts):
            x, y = data(step, part)[0]
            ((module.base(x) + x @ delta.T - y).square().mean() / parts).backward()
        value = (delta * delta.grad).abs().sum() / (7 * 5) ** 0.5
        ibar = 0.85 * ibar + 0.15 * value
        uncertainty = 0.85 * uncertainty + 0.15 * (value - ibar).abs()
        run.fire("after_backward")
        run.optimizer.step()
        run.step += 1
        run.fire("after_step")
        run.optimizer.zero_grad()
    torch.testing.assert_close(method.importance.average["a"], ibar.detach(), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(
        method.importance.score("a"), (ibar * uncertainty).detach(), rtol=1e-3, atol=1e-16
    )
    assert method.importance.score("a") > 0


def test_the_best_sites_grow_at_the_published_steps_until_the_target():
    method = allocator()
    run, totals, best = started(method), [], []
    for _ in range(TOTAL):
        before = dict(method.ranks)
        advance(run)
        grown = {site for site in before if method.ranks[site] > before[site]}
        totals.append(sum(method.ranks.values()))
        if grown:
            order = sorted(before, key=lambda site: -float(method.importance.score(site)))
            best.append(grown == set(order[:2]))
    assert totals == [3] * 3 + [5] * 3 + [7] * 3 + [9] * 11
    assert best == [True] * 3


def test_reserves_come_with_the_first_gradient_and_change_the_function_by_their_tiny_value_alone():
    method = allocator()
    run = started(method)
    assert shown(run) == {"a": 1, "b": 1, "c": 1}
    advance(run)
    assert shown(run) == {"a": 2, "b": 2, "c": 2}
    for _, module in run.adapted():
        adapter = module.adapter
        assert float(adapter.E[1].detach()) == pytest.approx(1e-5) and 0 < adapter.A[1].detach().std() < 0.1
        scale = adapter.scaling * float(adapter.gain)
        reserve = adapter.composed() - scale * adapter.E[0] * torch.outer(adapter.B[:, 0], adapter.A[0])
        assert (
            reserve.abs().max()
            <= 1e-5 * scale * adapter.B[:, 1].abs().max() * adapter.A[1].abs().max() * 1.01
        )


def test_a_reserve_trains_its_vectors_while_its_value_is_frozen_against_momentum_and_decay():
    run = started(allocator(init_warmup=10, interval=2, target_rank=2, top_h=3))
    params = [info.param for info in run.parameters]
    run.optimizer = torch.optim.AdamW(params, lr=0.05, weight_decay=0.5)
    advance(run)
    before = {site: module.adapter.A[1].detach().clone() for site, module in run.adapted()}
    for _ in range(3):
        advance(run)
        assert all(float(E[1]) == pytest.approx(1e-5, rel=1e-6) for E in gates(run).values())
    assert all(not torch.allclose(before[site], module.adapter.A[1]) for site, module in run.adapted())
    moments = [run.optimizer.state[module.adapter.E]["exp_avg"][1:] for _, module in run.adapted()]
    assert not torch.cat(moments).any()


def test_growing_rescales_what_was_learnt_and_changes_nothing_else():
    """c = alpha / live rank, as published: from rank 1 to 2 the change is halved, up to the new reserve."""
    method = allocator()
    run = started(method)
    for _ in range(3):
        advance(run)
    backward(run)
    before = {site: module.adapter.composed().detach() for site, module in run.adapted()}
    run.fire("after_backward")
    grown = [site for site, rank in method.ranks.items() if rank == 2]
    assert len(grown) == 2
    for site, module in run.adapted():
        ratio = (1 + 1e-5) / (2 + 1e-5) if site in grown else 1.0
        torch.testing.assert_close(module.adapter.composed(), before[site] * ratio, rtol=1e-5, atol=1e-7)


def test_a_promoted_value_skips_the_step_in_which_it_grows_and_moves_from_the_next():
    method = allocator()
    run = started(method)
    for _ in range(4):
        advance(run)
    site = next(site for site, rank in method.ranks.items() if rank == 2)
    assert float(gates(run)[site][1]) == pytest.approx(1e-5, rel=1e-6)
    advance(run)
    assert float(gates(run)[site][1]) != pytest.approx(1e-5, rel=1e-6)


def test_after_the_last_growth_no_reserve_is_left_in_the_function_and_nothing_is_watched():
    method = allocator()
    run = started(method)
    for _ in range(TOTAL):
        advance(run)
    run.fire("finish")
    assert run.summary["ranks"] == method.ranks and sum(method.ranks.values()) == 9
    for site, module in run.adapted():
        assert len(module.adapter.factors()[0]) == method.ranks[site]
        assert not module.adapter.watch and module.adapter.take_gradient() is None
        assert module.adapter.scaling * float(module.adapter.gain) == pytest.approx(
            16 / (method.ranks[site] + 1e-5)
        )


def test_without_advance_learning_nothing_of_a_component_exists_before_it_is_chosen():
    method = allocator(advance=False)
    run = started(method)
    for _ in range(TOTAL):
        advance(run)
        assert shown(run) == method.ranks
    assert sum(method.ranks.values()) == 9


def test_a_full_site_leaves_its_turn_to_the_others_and_the_target_is_still_met():
    method = allocator(top_h=3)
    run = started(method, rank=4)
    for _ in range(TOTAL):
        advance(run)
    assert sum(method.ranks.values()) == 9 and max(method.ranks.values()) <= 4
    method = allocator(top_h=3, target_rank=4)
    run = started(method, rank=4)
    for _ in range(TOTAL):
        advance(run)
    assert set(method.ranks.values()) == {4}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (
            {"top_h": 4},
            r"allocate\.top_h: .*multiple of top_h \* increment = 4; write top_h: 3 and increment: 1",
        ),
        ({"increment": 4}, r"allocate\.top_h: .*write top_h: 2 and increment: 1"),
        ({"start_rank": 4}, r"allocate\.start_rank: .*write at most 3"),
        (
            {"target_rank": 6, "start_rank": 2, "increment": 3},
            r"allocate\.target_rank: .*at most 9 .* 12 are asked",
        ),
        ({"interval": 9}, r"allocate\.interval: 3 growths 9 steps apart do not fit into the 20 steps"),
    ],
)
def test_a_budget_that_cannot_be_met_exactly_is_refused_with_one_that_can(settings, where):
    with pytest.raises(RecipeError, match=where):
        started(allocator(**settings))


def test_growth_takes_a_third_of_the_run_by_default():
    method = allocator(init_warmup=None, interval=None)
    started(method, total=3000)
    assert (method.init_warmup, method.interval) == (30, 323)
    assert 990 <= 30 + 3 * method.interval <= 1000


def test_the_increment_of_the_published_targets_is_their_half():
    assert [IncreLoRA(IncreLoRA.Config(target_rank=rank)).increment for rank in (2, 4, 6, 8)] == [1, 2, 3, 4]


def test_growths_that_the_sites_of_the_model_do_not_allow_are_refused_before_a_weight_is_read(tiny):
    recipe = load_recipe(
        "recipes/smoke/increlora.yaml", [f"model.name={tiny()}", "adapter.targets=all-linear"]
    )
    model = load_model(recipe.recipe.model, meta=True)
    with pytest.raises(RecipeError, match=r"allocate\.top_h: 14 sites miss 14 components"):
        plan_without_weights(recipe.recipe, model)
