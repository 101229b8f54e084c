"""FRUGAL: AdamW where its subspace reaches, sign-SGD where it does not, and the memory the paper prints."""

import copy
import math

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import RecipeError

# hidden size, inner size, layers, and the GiB of state in the paper's table at density 0.25 and 0.
LLAMA = {
    "60M": (512, 1376, 8, 0.291, 0.244),
    "130M": (768, 2048, 12, 0.525, 0.366),
    "350M": (1024, 2736, 24, 1.052, 0.489),
    "1B": (2048, 5461, 24, 3.227, 0.977),
}
VOCABULARY = 32000


def build(params, roles=None, generators=None, **settings):
    roles = roles or ["matrix"] * len(params)
    infos = [ParamInfo(f"p{i}", p, role) for i, (p, role) in enumerate(zip(params, roles, strict=True))]
    config = OPTIMIZERS.declared("frugal").config(method="frugal", **settings)
    return OPTIMIZERS.get("frugal").build(infos, config, generators)


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(*shapes):
    return [torch.nn.Parameter(tensor(*shape, seed=i)) for i, shape in enumerate(shapes)]


def train(optimizer, params, steps, start=0):
    for t in range(start, start + steps):
        for index, param in enumerate(params):
            param.grad = tensor(*param.shape, seed=1000 * t + index) + 0.1 * param.detach()
        optimizer.step()


def llama(name):
    """Meta parameters of a configuration, in the order of the model."""
    hidden, inner, layers, *_ = LLAMA[name]
    block = (
        [((hidden, hidden), "matrix")] * 4 + [((inner, hidden), "matrix")] * 2 + [((hidden, inner), "matrix")]
    )
    block += [((hidden,), "vector")] * 2
    ends = [((VOCABULARY, hidden), "embedding"), ((VOCABULARY, hidden), "head"), ((hidden,), "vector")]
    shapes = [*block * layers, *ends]
    return [torch.nn.Parameter(torch.empty(s, device="meta")) for s, _ in shapes], [
        role for _, role in shapes
    ]


def state_bytes(optimizer, params):
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim]
    assert all(t.is_meta for t in held if any(p.is_meta for p in params))
    return sum(t.nbytes for t in held)


@pytest.mark.parametrize("name", LLAMA)
@pytest.mark.parametrize("density", [0.25, 0.0])
def test_block_mode_takes_the_state_of_the_papers_table(name, density):
    params, roles = llama(name)
    found = state_bytes(build(params, roles, choice="block", density=density), params)
    linear = sum(p.numel() for p, role in zip(params, roles, strict=True) if role == "matrix")
    rest = sum(p.numel() for p, role in zip(params, roles, strict=True) if role != "matrix")
    assert found == 8 * (density * linear + rest)
    assert found / 2**30 == pytest.approx(LLAMA[name][4 if density == 0 else 3], abs=5e-4)


@pytest.mark.parametrize(
    ("choice", "besides"),
    [
        ("columns", lambda m, n: 8 * int(n * 0.25)),
        ("rows", lambda m, n: 8 * int(m * 0.25)),
        ("randk", lambda m, n: 16 * int(m * n * 0.25)),
        ("svd", lambda m, n: 4 * round(min(m, n) * 0.25) * min(m, n)),
        ("random", lambda m, n: 4 * round(min(m, n) * 0.25) * min(m, n)),
    ],
)
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (33, 50)])
def test_every_choice_takes_the_bytes_the_docstring_states(choice, besides, shape):
    m, n = shape
    matrix, vector = weights(shape, (7,))
    found = state_bytes(build([matrix, vector], ["matrix", "vector"], choice=choice), [matrix, vector])
    numbers = {
        "columns": m * int(n * 0.25),
        "rows": n * int(m * 0.25),
        "randk": int(m * n * 0.25),
        "svd": max(m, n) * round(min(m, n) * 0.25),
    }
    assert found == 8 * (numbers[choice if choice != "random" else "svd"] + 7) + besides(m, n)


@pytest.mark.parametrize("choice", ["columns", "rows", "randk", "block"])
def test_at_density_one_it_is_adamw_bit_for_bit(choice):
    ours, theirs = weights((12, 9), (5, 16), (6,)), weights((12, 9), (5, 16), (6,))
    settings = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-7}
    train(build(ours, ["matrix", "matrix", "vector"], choice=choice, density=1.0, **settings), ours, 6)
    train(torch.optim.AdamW(theirs, foreach=False, **settings), theirs, 6)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("choice", ["columns", "rows", "randk", "block", "svd", "random"])
def test_at_density_zero_matrices_take_sign_sgd_and_the_rest_adamw(choice):
    matrix, vector, plain = weights((12, 9), (6,), (6,))
    plain.data.copy_(vector.data)
    expected, gradient = matrix.detach().clone(), tensor(12, 9, seed=5)
    gradient[0] = 0.0
    optimizer = build(
        [matrix, vector], ["matrix", "vector"], choice=choice, density=0.0, lr=0.01, weight_decay=0.1
    )
    reference = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1, foreach=False)
    for _ in range(3):
        matrix.grad, vector.grad, plain.grad = gradient.clone(), tensor(6, seed=6), tensor(6, seed=6)
        optimizer.step()
        reference.step()
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * gradient.sign()
    torch.testing.assert_close(matrix.data, expected)
    assert torch.equal(vector, plain)
    assert (
        sum(
            t.numel()
            for t in optimizer.state[matrix].values()
            if torch.is_tensor(t) and t.is_floating_point()
        )
        == 0
    )


@pytest.mark.parametrize("choice", ["columns", "rows", "randk"])
@pytest.mark.parametrize("state_free", ["sign_sgd", "sgd", "none"])
def test_chosen_coordinates_take_adamw_and_the_others_the_state_free_rule(choice, state_free):
    (param,), (plain,) = weights((12, 8)), weights((12, 8))
    before = param.detach().clone()
    optimizer = build(
        [param], choice=choice, state_free=state_free, lr=0.1, proj_lr_scale=0.5, inactive_lr_scale=0.2
    )
    reference = torch.optim.AdamW([plain], lr=0.05, weight_decay=0.0, foreach=False)
    train(optimizer, [param], 1)
    train(reference, [plain], 1)
    index = optimizer.state[param]["index"]
    chosen = torch.zeros(12, 8, dtype=torch.bool)
    if choice == "randk":
        chosen[index[0], index[1]] = True
    else:
        chosen.index_fill_(1 if choice == "columns" else 0, index, True)
    assert chosen.sum() == 24
    torch.testing.assert_close(param[chosen], plain[chosen])
    rule = {"sign_sgd": param.grad.sign(), "sgd": param.grad, "none": torch.zeros(12, 8)}[state_free]
    torch.testing.assert_close(param[~chosen], (before - 0.1 * 0.5 * 0.2 * rule)[~chosen])


@pytest.mark.parametrize("choice", ["svd", "random", "randperm"])
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
def test_a_projector_of_full_rank_leaves_nothing_to_the_signs(choice, shape):
    """Unguarded, half the entries of the residual are rounding noise whose sign is a full step."""
    moved = []
    for state_free in ("sign_sgd", "none"):
        (param,) = weights(shape)
        train(build([param], choice=choice, density=1.0, state_free=state_free), [param], 3)
        moved.append(param.detach())
    assert torch.equal(*moved)


@pytest.mark.parametrize("choice", ["svd", "random", "randperm"])
@pytest.mark.parametrize(
    ("side", "where"), [("std", "right"), ("reverse_std", "left"), ("right", "right"), ("left", "left")]
)
def test_a_projected_step_is_adam_in_the_subspace_and_the_sign_of_the_rest(choice, side, where):
    (param,) = weights((20, 8))
    before = param.detach().clone()
    optimizer = build([param], choice=choice, side=side, density=0.25, lr=0.1, weight_decay=0.2)
    train(optimizer, [param], 1)
    P, G = optimizer.state[param][where], param.grad
    P = P if where == "right" else P.mT
    torch.testing.assert_close(P @ P.mT, torch.eye(P.shape[0]))
    assert P.shape[0] == round(0.25 * P.shape[1])
    R = G @ P.mT if where == "right" else P @ G
    lifted = (lambda low: low @ P) if where == "right" else (lambda low: P.mT @ low)
    expected = before * (1 - 0.1 * 0.2) - 0.1 * lifted(R / (R.abs() + 1e-8)) - 0.1 * (G - lifted(R)).sign()
    torch.testing.assert_close(param.data, expected, rtol=1e-4, atol=1e-5)


def test_svd_takes_the_leading_singular_vectors_of_the_gradient():
    (param,) = weights((20, 8))
    optimizer = build([param], choice="svd", density=0.5)
    train(optimizer, [param], 1)
    P = optimizer.state[param]["right"]
    kept = (param.grad @ P.mT).norm() ** 2
    assert kept == pytest.approx(float(torch.linalg.svdvals(param.grad)[:4].square().sum()), rel=1e-4)


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_without_its_state_free_part_and_resets_it_is_galore(shape):
    """Up to where eps stands: GaLore adds it before the bias correction, this one after."""
    galore = pytest.importorskip("galore_torch.adamw")
    (ours,), (theirs,) = weights(shape), weights(shape)
    settings = {
        "choice": "svd",
        "density": 0.25,
        "update_every": 3,
        "reset_statistics": False,
        "state_free": "none",
    }
    train(build([ours], lr=0.01, proj_lr_scale=0.25, eps=1e-14, **settings), [ours], 7)
    group = {"params": [theirs], "rank": 2, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std"}
    train(galore.AdamW([group], lr=0.01, eps=1e-14, no_deprecation_warning=True), [theirs], 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reset", "expected"), [(True, 1), (False, 4)])
def test_a_new_subspace_starts_moments_and_bias_correction_again_unless_told_otherwise(reset, expected):
    (param,) = weights((12, 40))
    optimizer = build([param], update_every=3, reset_statistics=reset, beta1=0.5)
    train(optimizer, [param], 3)
    first, old = optimizer.state[param]["index"], optimizer.state[param]["exp_avg"].clone()
    train(optimizer, [param], 1, start=3)
    state = optimizer.state[param]
    assert state["step"] == expected and not torch.equal(state["index"], first)
    fresh = 0.5 * param.grad.index_select(1, state["index"])
    torch.testing.assert_close(state["exp_avg"], fresh if reset else fresh + 0.5 * old)


@pytest.mark.parametrize(
    ("order", "first"), [("descending", {6, 7}), ("ascending", {0, 1}), ("mirror", {0, 7})]
)
def test_blocks_go_round_all_matrices_without_overlap(order, first):
    params = weights(*[(4, 3)] * 8)
    optimizer = build(params, choice="block", density=0.25, update_every=2, order=order)
    seen = []
    for t in range(8):
        train(optimizer, params, 1, start=t)
        seen.append({i for i, p in enumerate(params) if "exp_avg" in optimizer.state[p]})
    assert seen[0] == first and seen[0::2] == seen[1::2]
    assert sorted(i for active in seen[::2] for i in active) == list(range(8))


def test_random_blocks_are_as_many_and_change():
    params = weights(*[(4, 3)] * 20)
    optimizer = build(params, choice="block", density=0.25, update_every=1, order="random")
    seen = []
    for t in range(4):
        train(optimizer, params, 1, start=t)
        seen.append(frozenset(i for i, p in enumerate(params) if "exp_avg" in optimizer.state[p]))
    assert {len(active) for active in seen} == {5} and len(set(seen)) > 1


def test_an_inactive_block_takes_the_sign_and_a_reactivated_one_starts_afresh():
    params = weights((4, 3), (4, 3))
    optimizer = build(params, choice="block", density=0.5, update_every=1, lr=0.1)
    before = params[0].detach().clone()
    train(optimizer, params, 1)
    torch.testing.assert_close(params[0].data, before - 0.1 * params[0].grad.sign())
    train(optimizer, params, 2, start=1)
    assert optimizer.state[params[1]]["step"] == 1


def test_a_parameter_that_misses_the_switch_gets_its_subspace_at_its_next_gradient():
    params = weights((12, 40), (12, 40))
    optimizer = build(params, update_every=2)
    train(optimizer, params, 2)
    old = optimizer.state[params[1]]["index"]
    params[1].grad = None
    train(optimizer, params[:1], 1, start=2)
    assert torch.equal(optimizer.state[params[1]]["index"], old)
    train(optimizer, params, 1, start=3)
    assert not torch.equal(optimizer.state[params[1]]["index"], old)
    assert optimizer.state[params[1]]["step"] == 1 and optimizer.state[params[0]]["step"] == 2


def test_singular_vectors_wait_for_a_gradient_that_has_some():
    """The gradient of LoRA's A is 0 while B is 0."""
    (param,) = weights((8, 12))
    optimizer = build([param], choice="svd", lr=0.1)
    before = param.detach().clone()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(param, before)
    train(optimizer, [param], 1)
    P = optimizer.state[param]["left"]
    kept = float((P.mT @ param.grad).norm() ** 2)
    assert kept == pytest.approx(float(torch.linalg.svdvals(param.grad)[:2].square().sum()), rel=1e-4)


@pytest.mark.parametrize("choice", ["columns", "randk", "svd", "random", "block"])
def test_the_draws_depend_on_seed_name_and_period_alone(choice):
    chosen = []
    for seed, steps in ((0, 1), (0, 1), (1, 1), (0, 3)):
        params = weights((12, 40), (30, 10), (9, 9), (4, 50), *[(6, 6)] * 6)
        optimizer = build(params, choice=choice, order="random", density=0.5, seed=seed, update_every=2)
        train(optimizer, params, steps)
        held = [optimizer.state[p] for p in params]
        parts = [s.get("index", s.get("left", s.get("right"))) for s in held]
        chosen.append(
            [("exp_avg" in s) if part is None else part.tolist() for s, part in zip(held, parts, strict=True)]
        )
    assert chosen[0] == chosen[1] != chosen[3]
    assert (chosen[0] == chosen[2]) == (choice == "svd")


def test_generators_may_be_given():
    (param,) = weights((12, 40))
    shared = torch.Generator().manual_seed(7)
    optimizer = build([param], generators=lambda name, period: shared)
    train(optimizer, [param], 1)
    expected = torch.randperm(40, generator=torch.Generator().manual_seed(7))[:10]
    assert torch.equal(optimizer.state[param]["index"], expected)


@pytest.mark.parametrize("choice", ["columns", "randk", "svd", "random", "block"])
def test_a_resumed_run_goes_on_across_a_switch_bit_for_bit(choice):
    params, others = weights((12, 40), (40, 12), (6,)), weights((12, 40), (40, 12), (6,))
    roles = ["matrix", "matrix", "vector"]
    settings = {"choice": choice, "density": 0.5, "update_every": 3, "lr": 0.01}
    optimizer, resumed = build(params, roles, **settings), build(others, roles, **settings)
    train(optimizer, params, 5)
    for own, other in zip(params, others, strict=True):
        other.data.copy_(own.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, 4, start=5)
    train(resumed, others, 4, start=5)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@pytest.mark.parametrize(
    ("settings", "shape", "sentence"),
    [
        ({"project": ["lora_A"]}, (4, 3), "no parameter has a role in .'lora_A'."),
        ({}, (4,), "only choice block takes it"),
        ({"choice": "block"}, (4, 3), "rounds to none; write at least 0.5"),
        (
            {"choice": "block", "density": 1.0, "order": "mirror"},
            (4, 3),
            "order: mirror takes matrices in pairs",
        ),
        (
            {"choice": "svd", "side": "left", "density": 0.5},
            (20, 8),
            "has 8 directions, and density 0.5 asks for 10",
        ),
    ],
)
def test_what_cannot_be_projected_is_refused_in_one_sentence(settings, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(weights(shape), **settings)


def test_blocks_cannot_keep_their_moments():
    with pytest.raises(ValueError, match="reset_statistics: true"):
        OPTIMIZERS.declared("frugal").config(method="frugal", choice="block", reset_statistics=False)


def test_counts_are_truncated_for_coordinates_and_rounded_for_projectors():
    (param,) = weights((7, 7))
    sizes = {}
    for choice, key in (("columns", "index"), ("randperm", "right")):
        optimizer = build([param], choice=choice, density=0.4)
        train(optimizer, [param], 1)
        sizes[choice] = len(optimizer.state[param][key])
    assert sizes == {"columns": math.floor(2.8), "randperm": 3}


def test_roles_that_the_adapter_does_not_have_are_refused_before_anything_is_loaded():
    """Of an adapter that keeps its roles to itself, or shares what has them, nothing is said."""

    def told(adapter, project="[lora_A, lora_B]"):
        overrides = [f"adapter={adapter}", f"optimizer.project={project}", "model.name=x/y"]
        try:
            load_recipe("recipes/smoke/frugal.yaml", overrides)
        except RecipeError as error:
            return [problem.message for problem in error.problems if problem.key == "optimizer.project"]
        return []

    assert told("lora") == told("s2_lora") == [] and told("vblora", "[core]") == []
    assert "name roles that do: [core]" in told("lora_xs")[0]
    assert "name roles that do: [core]" in told("vblora")[0]
    assert "name roles that do: [matrix] of trainable: full" in told("ia3")[0]
