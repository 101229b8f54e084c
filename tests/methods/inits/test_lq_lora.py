"""LQ-LoRA's own statements: the decomposition, its weighting, and the integer program over the bits."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from lrft.core.params import Site
from lrft.core.stages import Evidence, SitePlan
from lrft.methods.inits._bit_program import assign
from lrft.methods.inits.lq_lora import decompose, importance_of
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import MissingExtra, RecipeError
from tests.contracts.test_inits import build, make, measured, storing


def fixed(out, width, seed=0):
    """A weight that needs no random generator."""
    i = torch.arange(out * width, dtype=torch.float64) + seed
    return (torch.sin(i * 12.9898 + 0.3) * torch.sin(i * i * 0.7391 + 0.1)).float().view(out, width) * 0.05


def nf3(weight, bias=None):
    return storing("nf_blocks")(weight, bias, bits=3, scales_per_block=16)


# Errors of the authors' code after so many rounds of the exact SVD at rank 8, bits 3, 8 and float32, blocks 64 and 16.
@pytest.mark.parametrize(
    ("weighted", "errors"),
    [
        (False, {1: 0.362010121, 2: 0.327369809, 3: 0.310093343, 5: 0.296328813}),
        (True, {1: 0.010182478, 2: 0.009245718, 3: 0.008869047, 5: 0.008476610}),
    ],
)
def test_errors_are_those_of_the_authors_code(weighted, errors):
    weight = fixed(64, 128)
    importance = importance_of(fixed(64, 128, seed=7).square()) if weighted else None
    for rounds, expected in errors.items():
        _, error = decompose(weight, 8, nf3, rounds, None, importance)
        assert error == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_best_round_is_kept_and_not_the_one_after_it(weighted):
    """The authors' code ends at 0.283516 here, and at 0.00788773 with weights."""
    weight = fixed(64, 128)
    importance = importance_of(fixed(64, 128, seed=7).square()) if weighted else None
    (A, B), error = decompose(weight, 8, nf3, 100, None, importance)
    assert error < (0.00788773 if weighted else 0.28351613)
    missed = weight - B @ A - nf3(weight - B @ A).weight()
    kept = (missed if importance is None else importance.root * missed).norm().item()
    assert kept == pytest.approx(error, rel=1e-6)


def test_the_base_on_attaching_makes_the_error_that_was_found():
    site, weight = make("lq_lora", "nf_blocks", alpha=3.0, niter=None)
    _, error = decompose(weight, 4, storing("nf_blocks"), 100, None)
    assert (site.merged_weight() - weight).norm().item() == pytest.approx(error, rel=1e-3)


def test_equal_importance_is_no_importance():
    weight = fixed(64, 128)
    plain, error = decompose(weight, 8, nf3, 3, None)
    same, weighted = decompose(weight, 8, nf3, 3, None, importance_of(torch.full((64, 128), 4.0)))
    torch.testing.assert_close(same[1] @ same[0], plain[1] @ plain[0], atol=1e-5, rtol=1e-3)
    assert weighted == pytest.approx(2 * error, rel=1e-3)


def test_what_matters_more_is_kept_better():
    weight, fisher = fixed(64, 128), torch.full((64, 128), 1e-8)
    fisher[:8] = 1e-4
    spread = {}
    for importance in (None, importance_of(fisher)):
        (A, B), _ = decompose(weight, 8, nf3, 5, None, importance)
        missed = weight - B @ A - nf3(weight - B @ A).weight()
        spread[importance is None] = missed[:8].norm() / missed.norm()
    assert spread[False] < 0.6 * spread[True]


def test_rows_and_columns_without_any_gradient_do_not_divide_by_zero():
    weight, fisher = fixed(64, 128), fixed(64, 128, seed=7).square()
    fisher[5], fisher[:, 9] = 0, 0
    (A, B), error = decompose(weight, 8, nf3, 5, None, importance_of(fisher))
    assert A.isfinite().all() and B.isfinite().all() and 0 < error < 1
    with pytest.raises(ValueError, match="batches"):
        importance_of(torch.zeros(4, 4))


def test_tiny_squared_gradients_decompose_as_large_ones():
    weight, fisher = fixed(64, 128), fixed(64, 128, seed=7).square()
    (A, B), _ = decompose(weight, 8, nf3, 2, None, importance_of(fisher))
    (tiny_A, tiny_B), _ = decompose(weight, 8, nf3, 2, None, importance_of(1e-18 * fisher))
    torch.testing.assert_close(tiny_B @ tiny_A, B @ A, atol=1e-5, rtol=1e-3)


def test_on_a_dense_base_it_is_pissa():
    ours, weight = make("lq_lora", "none", niter=None)
    pissa, _ = make("pissa", "none")
    torch.testing.assert_close(
        ours.adapter.delta_weight(weight), pissa.adapter.delta_weight(weight), atol=1e-5, rtol=1e-4
    )


def test_the_published_randomised_decomposition_is_as_good_on_a_decaying_spectrum():
    weight = fixed(64, 128) @ torch.diag(0.95 ** torch.arange(128))
    torch.manual_seed(0)
    _, fast = decompose(weight, 8, nf3, 10, 2)
    _, exact = decompose(weight, 8, nf3, 10, None)
    assert fast < 1.05 * exact


def test_data_is_asked_for_only_with_weighting_and_weights_only_with_a_budget():
    assert build("lq_lora").needs == () and not build("lq_lora").reads_weights
    assert build("lq_lora", weighting="fisher").needs == ("fisher",)
    assert build("lq_lora", budget=3.0).reads_weights


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_what_trying_everything_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(5, 4, generator=generator) ** 3
    sizes = torch.tensor([2.0, 3.0, 4.0, 8.0]) * torch.randint(1, 9, (5, 1), generator=generator)
    budget = float(sizes.mean(dim=1).sum()) * 0.8
    feasible = [
        sum(costs[i, j].item() for i, j in enumerate(way))
        for way in itertools.product(range(4), repeat=5)
        if sum(sizes[i, j].item() for i, j in enumerate(way)) <= budget
    ]
    found = assign(costs, sizes, budget)
    assert sum(costs[i, j].item() for i, j in enumerate(found)) == pytest.approx(min(feasible), abs=1e-7)
    assert sum(sizes[i, j].item() for i, j in enumerate(found)) <= budget


def test_one_configuration_is_no_choice_and_a_budget_met_exactly_is_met():
    sizes = torch.full((3, 1), 4.0)
    assert assign(torch.rand(3, 1), sizes, 12.0) == [0, 0, 0]
    assert assign(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 4.0], [2.0, 4.0]]), 6.0) in (
        [0, 1],
        [1, 0],
    )


def test_a_budget_below_the_smallest_is_refused():
    with pytest.raises(ValueError, match=r"smallest configurations need 1\.5 times"):
        assign(torch.rand(3, 2), torch.full((3, 2), 3.0), 6.0)


def test_without_the_solver_the_install_line_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtra, match="pip install"):
        assign(torch.rand(1, 1), torch.ones(1, 1), 2.0)


def planned(weights, storage="nf_blocks", **settings):
    """The plan of layers with these weights; quantization settings by layer."""
    init = build("lq_lora", **settings)
    config = ADAPTERS.declared("lora").config(method="lora", rank=4)
    plan = {
        name: SitePlan(Site(name, weight.shape[1], weight.shape[0]), config)
        for name, weight in weights.items()
    }
    signals = {
        name: measured(init, *weight.shape, site=i) for i, (name, weight) in enumerate(weights.items())
    }
    heard = []
    evidence = Evidence(signals, weights.__getitem__, storing(storage), lambda *done: heard.append(done))
    found = init.plan(plan, evidence)
    assert heard[-1:] == ([] if init.config.budget is None else [(len(weights), len(weights))])
    return {name: entry.quantization for name, entry in found.items()}


def layers():
    """Four layers that lose the more by rounding the larger their index, the second twice as large as the others."""
    return {f"layer{i}": fixed(128 if i == 1 else 64, 128, i) * 3.0**i for i in range(4)}


def bits_used(weights, chosen):
    stored = [8 * storing("nf_blocks")(weights[name], **chosen[name]).stored_bytes for name in weights]
    return sum(stored) / sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("weighting", ["none", "fisher"])
@pytest.mark.parametrize("budget", [2.5, 3.0, 4.2])
def test_bits_go_where_rounding_costs_most_and_the_stored_bytes_keep_the_budget(budget, weighting):
    weights = layers()
    chosen = planned(weights, budget=budget, weighting=weighting)
    assert bits_used(weights, chosen) <= budget
    bits = [settings["bits"] for settings in chosen.values()]
    if weighting == "none":
        assert bits[0] == min(bits) and bits[3] == max(bits)
    # Nothing that is left over would buy a layer the next larger choice, or the program has missed it.
    for name in weights:
        larger = [b for b in (2, 3, 4, 8) if b > chosen[name]["bits"]]
        if larger:
            assert bits_used(weights, {**chosen, name: {"bits": larger[0]}}) > budget


def test_the_grid_may_vary_every_setting_of_the_storage():
    grid = {
        "bits": [2, 3],
        "scale_bits": [2, 8],
        "second_dtype": ["bfloat16", "float32"],
        "block_size": [16, 64],
    }
    weights = layers()
    chosen = planned(weights, budget=3.0, grid=grid)
    assert all(settings.keys() == grid.keys() for settings in chosen.values())
    assert bits_used(weights, chosen) <= 3.0


def test_the_plan_is_the_same_each_time_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = planned(layers(), budget=3.0, plan_iterations=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert planned(layers(), budget=3.0, plan_iterations=3) == one


def test_without_a_budget_every_layer_is_stored_as_the_recipe_says():
    assert set(map(len, planned(layers()).values())) == {0}


def test_a_budget_that_no_bits_fit_is_refused_under_its_key():
    with pytest.raises(RecipeError, match=r"init\.budget: 1\.5 bits a weight"):
        planned(layers(), budget=1.5)


def test_a_storage_without_the_settings_of_the_grid_is_refused_under_its_key():
    with pytest.raises(RecipeError, match=r"init\.grid: the storage does not take"):
        planned(layers(), "nf4_reference", budget=3.0)


def test_the_full_grid_of_the_authors_is_what_the_storage_takes():
    lists = ([2, 3, 4, 8], [2, 3, 4, 8], ["bfloat16", "float16", "float32"], [16, 32, 64], [16, 64, 256])
    keys = ("bits", "scale_bits", "second_dtype", "block_size", "scales_per_block")
    config = QUANTIZERS.declared("nf_blocks").config
    assert (
        sum(config(**dict(zip(keys, way, strict=True))) is not None for way in itertools.product(*lists))
        == 432
    )
