"""Muon's own statements, and torch's Muon and AdamW on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim.muon import Muon
from lrft.training.updates import state_bytes

SHAPES = {"matrix": (6, 40), "lora_A": (4, 30), "lora_B": (30, 4), "core": (4, 4)}
OTHERS = {"embedding": (50, 8), "head": (50, 8), "vector": (8,), "magnitude": (9,)}


def make(shapes, **settings):
    torch.manual_seed(0)
    infos = [ParamInfo(role, torch.nn.Parameter(torch.randn(s)), role) for role, s in shapes.items()]
    return Muon.build(infos, Muon.Config(method="muon", **settings)), infos


def steps(optimizers, params, count=4):
    for t in range(count):
        generator = torch.Generator().manual_seed(t)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("scale", "theirs"), [("match_adamw", "match_rms_adamw"), ("original", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_muon_on_matrices_and_torchs_adamw_elsewhere(scale, theirs, nesterov):
    settings = {"lr": 0.01, "weight_decay": 0.1, "scale": scale, "nesterov": nesterov, "adam_lr": 0.003}
    mine, infos = make(SHAPES | OTHERS, **settings)
    copies = [torch.nn.Parameter(info.param.detach().clone()) for info in infos]
    split = len(SHAPES)
    muon = torch.optim.Muon(copies[:split], lr=0.01, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=theirs)
    adamw = torch.optim.AdamW(copies[split:], lr=0.003, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    steps([mine], [info.param for info in infos])
    steps([muon, adamw], copies)
    for info, copy in zip(infos, copies, strict=True):
        assert torch.equal(info.param, copy), info.name


@pytest.mark.parametrize("shape", [(64, 64), (8, 200), (200, 8)])
def test_the_first_step_has_the_singular_vectors_of_the_gradient_and_alike_values(shape):
    optimizer, [info] = make({"matrix": shape}, lr=1.0)
    before, gradient = info.param.detach().clone(), torch.randn(shape)
    info.param.grad = gradient
    optimizer.step()
    moved = (before - info.param.detach()) / (0.2 * max(shape) ** 0.5)
    U, S, Vh = torch.linalg.svd(gradient, full_matrices=False)
    values = U.mT @ moved @ Vh.mT
    large = 0.05 * S.max() < S
    assert values.diagonal()[large].min() > 0.6 and values.diagonal()[large].max() < 1.3
    assert (values - values.diagonal().diag()).abs().max() < 0.05


def test_updates_of_a_square_matrix_are_as_large_as_adamws():
    """The paper's 0.2: root mean squares of AdamW's updates are 0.2 to 0.4 of the rate."""
    optimizer, [info] = make({"matrix": (256, 256)}, lr=1.0)
    before = info.param.detach().clone()
    steps([optimizer], [info.param], 1)
    assert 0.15 < (info.param.detach() - before).square().mean().sqrt() < 0.25


def test_state_is_4_bytes_a_number_of_a_matrix_and_8_of_all_else():
    optimizer, infos = make(SHAPES | OTHERS)
    steps([optimizer], [info.param for info in infos], 1)
    hidden = sum(info.param.numel() for info in infos if info.role in SHAPES)
    rest = sum(info.param.numel() for info in infos if info.role in OTHERS)
    assert state_bytes(optimizer) == 4 * hidden + 8 * rest


def test_a_core_of_three_dimensions_moves_by_adamw():
    optimizer, [info] = make({"core": (3, 4, 4)})
    steps([optimizer], [info.param], 1)
    assert "exp_avg" in optimizer.state[info.param]


def test_published_defaults():
    config = Muon.Config(method="muon")
    assert (config.momentum, config.nesterov, config.ns_steps, config.scale) == (0.95, True, 5, "match_adamw")
