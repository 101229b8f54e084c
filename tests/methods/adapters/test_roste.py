"""RoSTE's own statements: an exact rotation, roundings that gradients pass, and the better rotation of two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.stages import Tokens
from lrft.methods.adapters.roste import RoSTE
from lrft.methods.inits.roste import RoSTEChoice
from lrft.methods.quant.none import Dense
from lrft.methods.signals.rotation_error import RotationError
from lrft.ops.hadamard import hadamard, rotation_of
from lrft.ops.uniform import Grid
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, RecipeError
from tests.each import each


def make(out=24, width=32, rotated=True, weight=None, moved=True, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) if weight is None else weight
    adapter = RoSTE(RoSTE.Config(method="roste", **settings), Site("a", width, out))
    adapter.turn(rotated)
    if moved:
        with torch.no_grad():
            adapter.D.normal_(std=0.1)
    return Adapted(Dense(weight), adapter), weight


def by_hand(rows, bits, clip=1.0):
    """The authors' quantizer: between the ends of a row, of which 0 need not be one."""
    low, high = clip * rows.amin(-1, keepdim=True), clip * rows.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    return (((rows / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step


def matrix(width):
    """R, (width, width)."""
    return rotation_of(width).turn(torch.eye(width))


@each("width", [1, 2, 32, 24, 96, 7])
def test_the_rotation_is_orthogonal_and_hadamards(width):
    R, order = matrix(width), width & -width
    torch.testing.assert_close(R @ R.mT, torch.eye(width), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(R.abs().amax(), torch.tensor(order**-0.5))
    assert (R.abs() > 1e-6).sum(1).eq(order).all()
    blocks = torch.block_diag(*[hadamard(order)] * (width // order)) / order**0.5
    torch.testing.assert_close(R, rotation_of(width).signs[:, None] * blocks, atol=1e-6, rtol=1e-5)
    x = torch.randn(3, width)
    torch.testing.assert_close(rotation_of(width).turn_back(x), x @ R.mT, atol=1e-5, rtol=1e-5)


def test_a_rotation_has_its_numbers_also_where_models_have_none():
    rotation_of.cache_clear()
    with torch.device("meta"):
        adapter = RoSTE(RoSTE.Config(method="roste"), Site("a", 32, 24))
    assert adapter.D.is_meta and rotation_of(32).turn(torch.eye(32)).det().abs() == pytest.approx(1, abs=1e-4)


def test_sylvesters_matrices():
    scipy = pytest.importorskip("scipy.linalg")
    for order in (1, 2, 8, 64):
        assert torch.equal(hadamard(order), torch.tensor(scipy.hadamard(order), dtype=torch.float32))


@each("bits", [2, 4, 8])
def test_the_grid_is_torchs_own_quantizer(bits):
    torch.manual_seed(0)
    rows = torch.randn(6, 40)
    grid = Grid.over(rows, bits)
    scale, zero = grid.step[:, 0].double(), grid.zero[:, 0].long()
    theirs = torch.fake_quantize_per_channel_affine(
        rows, scale.float(), zero.int(), axis=0, quant_min=0, quant_max=2**bits - 1
    )
    torch.testing.assert_close(grid.nearest(rows), theirs)
    assert (grid.nearest(rows) - rows).abs().max() <= 0.51 * grid.step.max()
    again = Grid.over(grid.nearest(rows), bits)
    torch.testing.assert_close(again.nearest(grid.nearest(rows)), grid.nearest(rows))
    assert not Grid.over(torch.zeros(2, 3), bits).nearest(torch.zeros(2, 3)).any()


@each(("bits", "clip"), [(2, 1.0), (4, 0.9), (8, 1.0)])
def test_rows_on_one_side_of_0_have_all_their_numbers_between_their_ends(bits, clip):
    torch.manual_seed(0)
    weight = torch.rand(6, 32) + 3
    site, _ = make(6, weight=weight, rotated=False, moved=False, bits=bits, activation_bits=bits, clip=clip)
    x = -2 - torch.rand(5, 32)
    x[0] = 1.5  # one number everywhere has no ends to lie between
    found = site(x)
    expected = F.linear(by_hand(x, bits, clip), by_hand(weight, bits, clip))
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found[0], clip * 1.5 * by_hand(weight, bits, clip).sum(1), atol=1e-3, rtol=1e-4
    )


@each(("rotated", "activation_bits"), [(True, 4), (False, 4), (True, None), (False, None)])
def test_it_is_the_formula_with_the_rotation_as_a_matrix(rotated, activation_bits):
    site, weight = make(rotated=rotated, activation_bits=activation_bits)
    R = matrix(32) if rotated else torch.eye(32)
    x = torch.randn(5, 32)
    V = (weight + site.adapter.D.detach()) @ R
    u = x @ R
    if activation_bits:
        u = by_hand(u, activation_bits)
    torch.testing.assert_close(site(x), F.linear(u, by_hand(V, 4)), atol=1e-4, rtol=1e-4)


def test_with_fine_grids_it_is_the_plain_layer():
    site, weight = make(bits=8, activation_bits=8)
    x = torch.randn(5, 32)
    plain = F.linear(x, weight + site.adapter.D)
    assert (site(x) - plain).norm() < 0.02 * plain.norm()


@each("rotated", [True, False])
def test_gradients_pass_the_roundings(rotated):
    site, weight = make(rotated=rotated)
    R = matrix(32) if rotated else torch.eye(32)
    x, seed = torch.randn(7, 32, requires_grad=True), torch.randn(7, 24)
    (site(x) * seed).sum().backward()
    u, V = x.detach() @ R, (weight + site.adapter.D.detach()) @ R
    u, V = by_hand(u, 4), by_hand(V, 4)
    torch.testing.assert_close(site.adapter.D.grad, seed.mT @ u @ R.mT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, seed @ V @ R.mT, atol=1e-4, rtol=1e-4)


def test_tokens_are_rounded_each_by_itself():
    site, _ = make()
    x = torch.randn(4, 32)
    x[2] *= 1000
    torch.testing.assert_close(site(x)[:2], site(x[:2]))


def outlying():
    """A weight, and inputs of which one channel is far larger: what rotations are for."""
    torch.manual_seed(1)
    x = torch.randn(200, 32)
    x[:, 5] *= 50
    return torch.randn(24, 32), x


@each(("outliers", "activation_bits", "rotated"), [(True, 4, True), (True, None, None), (False, 4, None)])
def test_the_choice_is_the_rotation_of_less_error(outliers, activation_bits, rotated):
    weight, x = outlying()
    x = x if outliers else torch.sign(x)  # of two values, which are exact unrotated
    site, _ = make(weight=weight, moved=False, rotated=False, activation_bits=activation_bits)
    init = RoSTEChoice(RoSTEChoice.Config(method="roste"))
    statistic = RotationError(**init.signal_options("rotation_error", site.adapter.config))
    for rows in x.split(50):
        statistic.update(rows, None, Tokens(torch.arange(50), torch.arange(50)))
    init.apply(site.adapter, weight, {"rotation_error": statistic.result()}, Dense)
    errors = []
    for R in (torch.eye(32), matrix(32)):
        V, u = weight @ R, x @ R
        of_inputs = 0.0 if activation_bits is None else (by_hand(u, 4) - u).square().sum(1).mean()
        errors.append(float((by_hand(V, 4) - V).square().sum() + of_inputs))
    assert (len(site.adapter.rotated) == 1) == (errors[1] < errors[0])
    assert rotated is None or (len(site.adapter.rotated) == 1) == rotated


def test_the_choice_is_saved_with_the_adapter():
    site, other = make()[0], make(rotated=False, moved=False)[0]
    other.adapter.load_state_dict(site.adapter.state_dict())
    x = torch.randn(5, 32)
    assert torch.equal(site(x), other(x))


def test_rounded_inputs_are_refused_in_a_merge_and_weights_alone_merge():
    site, _ = make()
    with pytest.raises(
        NotMergeable, match=r"roste rounds the inputs of a, which no weight says; .*activation_bits: null"
    ):
        site.merged_weight()
    site, _ = make(activation_bits=None)
    merged, x = site.merged_weight(), torch.randn(5, 32)
    torch.testing.assert_close(site(x), F.linear(x, merged), atol=1e-4, rtol=1e-4)
    rows = merged @ matrix(32)
    assert all(len(row.div(1e-4).round().unique()) <= 16 for row in rows)


def test_another_init_is_refused():
    with pytest.raises(
        RecipeError, match=r"init\.method: does not choose which layers are rotated; write roste"
    ):
        load_recipe("smoke/roste", ["model.name=x/y", "init=default"])


def test_the_pass_keeps_its_input_alone():
    site, kept = make(out=64, width=64)[0], []
    x = torch.randn(3, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    assert sorted(t.numel() for t in kept) == [x.numel(), site.adapter.D.numel()]
    assert any(t.data_ptr() == site.adapter.D.data_ptr() for t in kept)


def test_training_through_the_roundings_beats_rounding_afterwards():
    """Of inputs in a few directions, where weights can make up for one another."""
    weight, _ = outlying()
    x = torch.randn(64, 4) @ torch.randn(4, 32)
    y = F.linear(x, weight)
    site, _ = make(weight=weight, moved=False, bits=3, activation_bits=8)
    before = F.mse_loss(site(x), y).item()
    optimizer = torch.optim.Adam([site.adapter.D], lr=0.001)
    for _ in range(80):
        optimizer.zero_grad()
        F.mse_loss(site(x), y).backward()
        optimizer.step()
    assert F.mse_loss(site(x), y).item() < 0.5 * before
