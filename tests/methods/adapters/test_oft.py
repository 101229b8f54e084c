"""OFT's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.settling import Settling, settle
from lrft.methods.adapters.oft import OFT
from lrft.methods.quant.none import Dense


def make(block_size=4, out=24, width=16, size=0.5, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = OFT.at(OFT.Config(method="oft", block_size=block_size, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.q.normal_(std=size)
    return Adapted(Dense(weight), adapter), weight


@pytest.mark.parametrize("size", [1e-4, 0.5, 30.0])
def test_norms_and_angles_of_the_rows_stay_however_large_the_rotation(size):
    site, weight = make(block_size=8, size=size)
    merged = site.merged_weight()
    torch.testing.assert_close(merged @ merged.mT, weight @ weight.mT, atol=1e-4, rtol=1e-5)


def test_it_is_cayleys_map_of_the_skew_matrix_in_float64():
    site, weight = make()
    for k, q in enumerate(site.adapter.q.double()):
        Q = torch.zeros(4, 4, dtype=torch.float64)
        Q[*torch.triu_indices(4, 4, 1)] = q
        Q, eye = Q - Q.mT, torch.eye(4, dtype=torch.float64)
        block = weight[:, 4 * k : 4 * k + 4].double() @ (eye + Q) @ torch.linalg.inv(eye - Q)
        torch.testing.assert_close(
            site.merged_weight()[:, 4 * k : 4 * k + 4].double(), block, atol=1e-5, rtol=1e-5
        )


def test_a_rotation_far_below_the_precision_of_1_is_exact():
    site, weight = make(size=1e-9)
    Q = site.adapter.turns() / 2
    torch.testing.assert_close(Q[:, 0, 1], site.adapter.q[:, 0], rtol=1e-6, atol=0)
    assert site.adapter.delta_weight(weight).any()


def test_the_published_count_of_32_blocks_on_llama_3_2_3b():
    config = OFT.Config(method="oft", block_size=3072 // 32)
    assert 28 * sum(OFT.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 8_171_520


def test_it_is_pefts(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "OFTConfig")
    theirs.base_model.model[0].oft_R["default"].weight.data.copy_(site.adapter.q)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "bounded"),
    [
        ({"block_share": True}, False),
        ({"constraint": 0.05}, True),
        ({"constraint": 10.0}, False),
        ({"block_share": True, "constraint": 0.02}, True),
    ],
)
def test_steps_with_shared_and_bounded_rotations_are_pefts(in_peft, settings, bounded):
    site, weight = make(size=0.0, **settings)
    theirs = in_peft(site, weight, "OFTConfig")
    made = {one: torch.optim.AdamW(one.parameters(), lr=0.02, eps=1e-3) for one in (site, theirs)}
    for _ in range(5):
        x, y = torch.randn(9, 16), torch.randn(9, 24)
        for one, optimizer in made.items():
            optimizer.zero_grad()
            (one(x) - y).square().mean().backward()
            optimizer.step()
        if isinstance(site.adapter, Settling):
            settle([site.adapter], made[site])
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-5, rtol=1e-5
    )
    assert type(site.adapter).peft_form() is not None
    size = site.adapter.q.norm() * 2**0.5
    assert bool(size > 0.999 * settings.get("constraint", 1e9)) == bounded
    assert isinstance(site.adapter, Settling) == (
        "constraint" in settings
    )  # others may be trained by federations


def test_a_shared_rotation_is_counted_once():
    site, _ = make(block_share=True)
    assert site.adapter.q.numel() == OFT.count(site.adapter.config, site.adapter.site) == 6


def test_a_block_that_does_not_fit_is_refused_with_the_nearest_that_does():
    with pytest.raises(ValueError, match="block_size 6 does not divide the 16 inputs; use 4"):
        make(block_size=6)
