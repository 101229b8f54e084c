"""GaLore moves as the authors' code does, stays in its subspace, and resumes from within a period."""

import copy
from functools import partial

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim._projection import back, held, project
from lrft.registry.axes import OPTIMIZERS
from tests.methods.optim import moved
from tests.methods.optim.moved import SHAPES, parameters, resumed


def build(infos, **settings):
    config = OPTIMIZERS.declared("galore").config(method="galore", **settings)
    return OPTIMIZERS.get("galore").build(infos, config)


step = partial(moved.step, growth=0.0)  # and so every step has gradients of one size


def trained(steps=10, dtype=torch.float32, shapes=SHAPES, **settings):
    infos = parameters(dtype, shapes)
    optimizer = build(infos, **{"rank": 4, "update_every": 4, "lr": 0.01, **settings})
    for t in range(steps):
        step(optimizer, [info.param for info in infos], t)
    return optimizer, [info.param.detach() for info in infos]


def reference(name, shapes=SHAPES, steps=10, dtype=torch.float32, side="std", rest_decay=0.1, **settings):
    galore_torch = pytest.importorskip("galore_torch")
    params = [info.param for info in parameters(dtype, shapes)]
    low = {"rank": 4, "update_proj_gap": 4, "scale": 0.25, "proj_type": side, **settings}
    groups = [
        {"params": [p for p in params if p.ndim == 2], "weight_decay": 0.1, **low},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": rest_decay},
    ]
    silent = {"no_deprecation_warning": True} if name == "GaLoreAdamW" else {}
    optimizer = getattr(galore_torch, name)(groups, lr=0.01, **silent)
    for t in range(steps):
        step(optimizer, params, t)
    return [param.detach() for param in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right"])
def test_it_is_the_authors_code_step_for_step_through_two_refreshes(side, dtype):
    _, found = trained(dtype=dtype, side=side, weight_decay=0.1)
    for ours, theirs in zip(found, reference("GaLoreAdamW", dtype=dtype, side=side), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_with_8_bit_moments_it_is_the_authors_code_step_for_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    shapes = {"tall": (96, 80), "wide": (80, 96), "norm": (70,), "long": (5000,)}
    infos = parameters(shapes=shapes)
    optimizer = build(infos, rank=64, update_every=4, lr=0.01, bits=8, weight_decay=0.1)
    optimizer.param_groups[1]["weight_decay"] = 0.0  # on CPU their kernel decays the rest before it moves it
    for t in range(10):
        step(optimizer, [info.param for info in infos], t)
    theirs = reference("GaLoreAdamW8bit", shapes, rest_decay=0.0, rank=64)
    for info, other in zip(infos, theirs, strict=True):
        torch.testing.assert_close(info.param.detach(), other, rtol=1e-6, atol=1e-7)


def test_at_full_rank_with_inner_sgd_it_is_sgd():
    infos, twins = parameters(), parameters()
    ours = build(infos, rank=16, update_every=3, lr=0.01, scale=1.0, inner="sgd", weight_decay=0.0, beta1=0.0)
    theirs = torch.optim.SGD([twin.param for twin in twins], lr=0.01)
    for t in range(8):
        step(ours, [info.param for info in infos], t)
        step(theirs, [twin.param for twin in twins], t)
    for info, twin in zip(infos[:3], twins[:3], strict=True):
        torch.testing.assert_close(info.param, twin.param, rtol=1e-5, atol=1e-6)


def test_inner_sgd_has_momentum_within_one_subspace():
    infos, twins = parameters(), parameters()
    ours = build(infos, rank=16, update_every=100, lr=0.01, scale=1.0, inner="sgd", beta1=0.8)
    theirs = torch.optim.SGD([twin.param for twin in twins], lr=0.01, momentum=0.8)
    for t in range(6):
        step(ours, [info.param for info in infos], t)
        step(theirs, [twin.param for twin in twins], t)
    for info, twin in zip(infos[:3], twins[:3], strict=True):
        torch.testing.assert_close(info.param, twin.param, rtol=1e-5, atol=1e-6)


def test_at_full_rank_it_is_not_adam():
    """Adam depends on the basis it works in."""
    _, found = trained(rank=16, scale=1.0, steps=4)
    adamw = OPTIMIZERS.get("adamw")
    infos = parameters()
    plain = adamw.build(infos, OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.01))
    for t in range(4):
        step(plain, [info.param for info in infos], t)
    start = parameters()
    for ours, info, old in zip(found[:3], infos, start, strict=False):
        assert (ours - info.param).norm() > 0.2 * (info.param - old.param).norm()


@pytest.mark.parametrize("projection", ["svd", "random"])
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right", "full"])
def test_projections_are_orthonormal_and_give_back_their_own_subspace(projection, side):
    optimizer, _ = trained(projection=projection, side=side, steps=1)
    for param in optimizer.param_groups[0]["params"]:
        basis = held(optimizer.state[param])
        assert set(basis) == ({"left", "right"} if side == "full" else set(basis)) and basis
        for name, vectors in basis.items():
            rows = vectors if name == "right" else vectors.mT
            assert rows.shape == (4, param.shape[name == "right"])
            torch.testing.assert_close(rows @ rows.mT, torch.eye(4), rtol=0, atol=1e-5)
        inside = back(project(param.grad, basis), basis)
        torch.testing.assert_close(back(project(inside, basis), basis), inside, rtol=1e-4, atol=1e-5)


def test_the_smaller_dimension_is_compressed():
    optimizer, _ = trained(steps=1)
    tall, wide, square = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    assert tall["right"].shape == (4, 16) and tall["exp_avg"].shape == (24, 4)
    assert wide["left"].shape == (16, 4) and wide["exp_avg"].shape == (4, 24)
    assert square["right"].shape == (4, 16) and "left" not in square


def test_the_gradient_is_given_back_whole_at_full_rank():
    optimizer, _ = trained(rank=16, steps=1)
    for param in optimizer.param_groups[0]["params"]:
        basis = held(optimizer.state[param])
        torch.testing.assert_close(back(project(param.grad, basis), basis), param.grad, rtol=1e-4, atol=1e-5)


def test_between_two_refreshes_the_update_has_the_rank_of_the_projection():
    _, found = trained(steps=4, update_every=4)
    _, later = trained(steps=5, update_every=4)
    for param, more, info in zip(found[:3], later[:3], parameters()[:3], strict=True):
        ranks = [torch.linalg.matrix_rank(at - info.param.detach(), rtol=1e-4) for at in (param, more)]
        assert ranks == [4, 8]


def test_scale_multiplies_the_update_but_neither_decay_nor_the_rest():
    start = [info.param.detach() for info in parameters()]
    once, thrice = (trained(steps=1, scale=scale)[1] for scale in (0.25, 0.75))
    for a, b, old in zip(once[:3], thrice[:3], start[:3], strict=True):
        torch.testing.assert_close(3 * (a - old), b - old, rtol=1e-4, atol=1e-6)
    assert torch.equal(once[3], thrice[3])
    decayed = trained(steps=1, scale=0.75, weight_decay=0.2)[1]
    for a, b in zip(thrice, decayed, strict=True):
        torch.testing.assert_close(b, a * (1 - 0.01 * 0.2), rtol=1e-6, atol=1e-8)


def resumed_and_unbroken(infos, twins, **settings):
    """Parameters after 6 steps and 5 more, the second time through files at step 6, within a period."""
    optimizer = build(infos, **settings)
    for t in range(6):
        step(optimizer, [info.param for info in infos], t)
    params = [info.param for info in infos]
    return resumed(optimizer, params, twins, partial(build, **settings), growth=0.0), optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"projection": "random"},
        {"bits": 8},
        {"inner": "sgd"},
        {"state_dtype": "float32"},
        {"side": "left"},
    ],
    ids=str,
)
def test_a_run_resumed_within_a_period_is_the_unbroken_one_bit_for_bit(settings, dtype):
    shapes = {"tall": (96, 80), "wide": (80, 96), "norm": (70,), "long": (5000,)}
    infos, twins = parameters(dtype, shapes), parameters(dtype, shapes)
    resumed, optimizer = resumed_and_unbroken(
        infos, twins, rank=64, update_every=4, lr=0.01, weight_decay=0.1, **settings
    )
    for info, twin in zip(infos, twins, strict=True):
        assert torch.equal(info.param, twin.param)
        for key, value in optimizer.state[info.param].items():
            again = resumed.state[twin.param][key]
            assert (
                torch.equal(value, again) and value.dtype == again.dtype
                if torch.is_tensor(value)
                else value == again
            )


def test_bfloat16_weights_have_bfloat16_state_unless_float32_is_chosen():
    for settings, expected in [({}, torch.bfloat16), ({"state_dtype": "float32"}, torch.float32)]:
        optimizer, params = trained(dtype=torch.bfloat16, **settings)
        kept = [
            value for held_ in optimizer.state.values() for value in held_.values() if torch.is_tensor(value)
        ]
        assert {value.dtype for value in kept} == {expected} and {p.dtype for p in params} == {torch.bfloat16}


def test_bfloat16_follows_float32_to_its_precision():
    _, exact = trained(steps=6)
    start = [info.param.detach() for info in parameters()]
    for settings, bound in [({}, 0.5), ({"state_dtype": "float32"}, 0.5)]:
        _, found = trained(steps=6, dtype=torch.bfloat16, **settings)
        for a, b, old in zip(found, exact, start, strict=True):
            assert (a.float() - b).norm() < bound * (b - old).norm() + 2**-8 * b.norm()


def test_8_bit_moments_stay_close_to_32_bit_ones():
    shapes = {"tall": (96, 80), "wide": (80, 96), "long": (5000,)}
    settings = {"shapes": shapes, "rank": 64, "steps": 20, "update_every": 50, "eps": 1e-8}
    (optimizer, found), (_, exact) = trained(bits=8, **settings), trained(**settings)
    start = [info.param.detach() for info in parameters(shapes=shapes)]
    for a, b, old in zip(found, exact, start, strict=True):
        assert 0 < ((a - b).norm() / (b - old).norm()).item() < 0.05
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.uint8
    assert state["exp_avg"].shape == (96, 64) and state["exp_avg_absmax"].shape == (24,)


@pytest.mark.parametrize("projection", ["svd", "random"])
def test_one_optimizer_a_parameter_is_the_same_as_one_for_all(projection):
    settings = {"rank": 4, "update_every": 4, "lr": 0.01, "projection": projection, "weight_decay": 0.1}
    together, apart = parameters(), parameters()
    whole = build(together, **settings)
    single = [build([info], **settings) for info in apart]
    for t in range(10):
        step(whole, [info.param for info in together], t)
        for index, (info, own) in enumerate(zip(apart, single, strict=True)):
            generator = torch.Generator().manual_seed(100 * t + index)
            info.param.grad = torch.randn(info.param.shape, generator=generator) + 0.1 * info.param.detach()
            own.step()
    assert all(torch.equal(a.param, b.param) for a, b in zip(together, apart, strict=True))


def test_random_projections_depend_on_seed_name_and_refresh():
    def bases(seed=0, steps=1):
        optimizer, _ = trained(projection="random", seed=seed, steps=steps)
        return [optimizer.state[p]["right"] for p in optimizer.param_groups[0]["params"][::2]]

    tall, square = bases()
    assert torch.equal(tall, bases()[0]) and not torch.equal(tall, square)
    assert not torch.equal(tall, bases(seed=1)[0])
    assert torch.equal(tall, bases(steps=4)[0]) and not torch.equal(tall, bases(steps=5)[0])


def test_a_gradient_of_zeros_leaves_the_choice_of_the_subspace_to_the_next_one():
    infos = parameters()[:1]
    optimizer = build(infos, rank=4, update_every=4, lr=0.01)
    param = infos[0].param
    before = param.detach().clone()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(param, before) and held(optimizer.state[param]) is None
    step(optimizer, [param], 0)
    chosen = optimizer.state[param]["right"].clone()
    _, _, vh = torch.linalg.svd(param.grad)
    torch.testing.assert_close(chosen, vh[:4])
    for t in range(2):
        step(optimizer, [param], t)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["right"], chosen)
    step(optimizer, [param], 5)
    assert not torch.equal(optimizer.state[param]["right"], chosen)


def test_moments_and_their_count_go_on_when_the_subspace_changes():
    optimizer, _ = trained(steps=4)
    param = optimizer.param_groups[0]["params"][0]
    old = copy.deepcopy(optimizer.state[param])
    step(optimizer, [param], 4)
    new = optimizer.state[param]
    assert not torch.equal(old["right"], new["right"]) and new["step"] == 5
    expected = 0.9 * old["exp_avg"] + 0.1 * project(param.grad, held(new))
    torch.testing.assert_close(new["exp_avg"], expected)


def adapter_parameters():
    shapes = {"s.A": ((8, 32), "lora_A"), "s.B": ((32, 8), "lora_B")}
    return [ParamInfo(n, torch.nn.Parameter(torch.randn(s)), role, "s") for n, (s, role) in shapes.items()]


def test_factors_of_an_adapter_are_projected_where_their_roles_are_named():
    infos = adapter_parameters()
    optimizer = build(infos, rank=4, project=["lora_B"])
    step(optimizer, [info.param for info in infos], 0)
    assert held(optimizer.state[infos[0].param]) is None
    assert optimizer.state[infos[1].param]["right"].shape == (4, 8)


@pytest.mark.parametrize("count", [2, 1], ids=["all_in_one", "one_of_many"])
def test_it_refuses_a_run_with_nothing_to_project(count):
    with pytest.raises(ValueError, match=r"project: no trainable tensor has the role matrix .*lora_A"):
        build(adapter_parameters()[:count])


def test_it_refuses_to_project_what_is_no_matrix():
    with pytest.raises(ValueError, match="experts has 3 dimensions"):
        build([ParamInfo("experts", torch.nn.Parameter(torch.ones(2, 4, 4)), "matrix")])


def test_8_bit_moments_go_with_adam_alone():
    config = OPTIMIZERS.declared("galore").config
    for settings in ({"inner": "sgd"}, {"state_dtype": "float32"}):
        with pytest.raises(ValueError, match="bits: 8 goes with"):
            config(method="galore", bits=8, **settings)
