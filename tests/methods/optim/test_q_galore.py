"""Q-GaLore: GaLore on the projections that its codes stand for, which are chosen more rarely once they are alike."""

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim._projection import project
from lrft.ops.bits import pack_nibbles, unpack_nibbles
from lrft.registry.axes import OPTIMIZERS
from tests.methods.optim import moved

SHAPES = {"tall": (96, 80), "wide": (80, 96), "norm": (70,)}
RANK, GROUP = 64, 256


def build(infos, method="q_galore", **settings):
    usual = {"rank": RANK, "update_every": 2, "lr": 0.01, "weight_decay": 0.1, **settings}
    return OPTIMIZERS.get(method).build(infos, OPTIMIZERS.declared(method).config(method=method, **usual))


def give_gradients(infos, t, same=0.0):
    """Noise of the step; a share `same` of it that of every step."""
    for index, info in enumerate(infos):
        noise, fixed = (
            torch.randn(info.param.shape, generator=torch.Generator().manual_seed(seed + index))
            for seed in (100 * t, 7)
        )
        info.param.grad = (same * fixed + (1 - same) * noise).to(info.param.dtype)


def by_hand(vectors):
    """Rounded to sixteen numbers between the least and the largest of each 256, one of them 0."""
    flat = vectors.reshape(-1)
    groups = [flat[k : k + GROUP] for k in range(0, len(flat), GROUP)]
    found = []
    for group in groups:
        q = (group.max() - group.min()) / 15
        z = (-group.min() / q).round()
        found.append(((group / q).round() + z).clamp(0, 15).sub(z) * q)
    return torch.cat(found).view(vectors.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_projection_is_what_its_codes_stand_for(dtype):
    infos = moved.parameters(dtype, SHAPES)
    optimizer = build(infos)
    give_gradients(infos, 0)
    optimizer.step()
    for info in infos[:2]:
        (side, found), *more = optimizer.basis(optimizer.state[info.param], info.param.grad, "").items()
        exact = optimizer.new_basis(info.param.grad, "", 0)[side]
        assert not more and side == ("right" if info.name == "tall" else "left")
        torch.testing.assert_close(found, by_hand(exact), rtol=0, atol=0)
        assert 0.01 < float((found - exact).norm() / exact.norm()) < 0.2
        assert len(found.unique()) <= 16 * -(-found.numel() // GROUP)


def test_its_steps_are_those_of_galore_on_that_projection(monkeypatch):
    """Through three choices, with 8-bit moments; GaLore is given the rounded projection."""
    infos, twins = moved.parameters(shapes=SHAPES), moved.parameters(shapes=SHAPES)
    ours, theirs = build(infos), build(twins, "galore", bits=8)
    exact = theirs.new_basis
    rounded = lambda *given: {side: by_hand(vectors) for side, vectors in exact(*given).items()}  # noqa: E731
    monkeypatch.setattr(theirs, "new_basis", rounded)
    for t in range(5):
        for optimizer, some in ((ours, infos), (theirs, twins)):
            give_gradients(some, t)
            optimizer.step()
    for info, twin in zip(infos, twins, strict=True):
        assert torch.equal(info.param, twin.param)


@pytest.mark.parametrize("bits", [8, 32])
def test_the_state_has_so_many_bytes(bits):
    """Counted: codes of half a byte, a step and a zero for each 256 of them, and the leading direction."""
    infos = moved.parameters(torch.bfloat16, SHAPES)
    optimizer = build(infos, bits=bits)
    give_gradients(infos, 0)
    optimizer.step()
    for info in infos[:2]:
        held = {name: t for name, t in optimizer.state[info.param].items() if torch.is_tensor(t)}
        codes = RANK * min(info.param.shape)
        low = RANK * max(info.param.shape)
        moments = 2 * (low + 4 * low // 256) if bits == 8 else 2 * 2 * low
        expected = codes // 2 + (codes // GROUP) * (2 + 1) + 2 * min(info.param.shape) + moments
        assert sum(t.numel() * t.element_size() for t in held.values()) == expected


def test_alike_projections_are_chosen_ever_more_rarely():
    infos = moved.parameters(shapes=SHAPES)
    optimizer = build(infos, update_every=1, queue=3, slower=2.0)
    chosen = []
    for t in range(12):
        give_gradients(infos, t, same=0.95)
        optimizer.step()
        chosen.append(optimizer.state[infos[0].param]["refreshes"])
    # Three cosines are known at the fourth choice; from then on two, four and eight steps lie between two of them.
    assert chosen == [1, 2, 3, 4, 5, 5, 5, 5, 6, 6, 6, 6]
    assert optimizer.interval(optimizer.state[infos[0].param]) == 8


def test_unlike_projections_keep_their_interval():
    infos = moved.parameters(shapes=SHAPES)
    optimizer = build(infos, update_every=1, queue=3)
    for t in range(8):
        give_gradients(infos, t)
        optimizer.step()
    state = optimizer.state[infos[0].param]
    assert state["refreshes"] == 8 and "every" not in state and len(state["cosines"]) == 3


def test_a_last_group_may_be_short_and_codes_come_back():
    numbers = torch.arange(35, dtype=torch.uint8) % 16
    assert len(pack_nibbles(numbers)) == 18 and torch.equal(
        unpack_nibbles(pack_nibbles(numbers), 35), numbers
    )
    infos = [ParamInfo("m", torch.nn.Parameter(torch.randn(9, 7)), "matrix")]
    optimizer = build(infos, rank=5, group=16)
    infos[0].param.grad = torch.randn(9, 7)
    optimizer.step()
    state = optimizer.state[infos[0].param]
    assert len(state["right_codes"]) == 18 and len(state["right_step"]) == 3
    assert project(infos[0].param.grad, optimizer.basis(state, infos[0].param.grad, "")).shape == (9, 5)
