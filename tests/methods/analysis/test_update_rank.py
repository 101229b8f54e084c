"""The rank of an update, of matrices whose rank is known and of real adapters."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.less import Less
from lrft.core.params import Site
from lrft.methods.analysis.update_rank import _ranks
from lrft.registry.axes import ADAPTERS, QUANTIZERS


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 17])
def test_a_product_of_factors_has_their_rank(rank):
    assert _ranks(normal(40, rank) @ normal(rank, 30, seed=1))[0] == rank


def test_nothing_has_rank_0_and_the_identity_its_size_twice():
    assert _ranks(torch.zeros(4, 5)) == (0.0, 0.0)
    assert _ranks(torch.eye(6)) == pytest.approx((6.0, 6.0))


def site(name: str, quantization: str, **settings) -> Adapted:
    torch.manual_seed(0)
    weight = normal(48, 64)
    base = QUANTIZERS.get(quantization)(weight, None, QUANTIZERS.settings(quantization))
    adapter = ADAPTERS.get(name)(ADAPTERS.settings(name, **settings), Site("x", 64, 48))
    adapter.start(base.weight())
    for parameter in adapter.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    return Adapted(base, adapter)


@pytest.mark.parametrize("quantization", ["none", "nf4_reference"])
def test_a_tiny_change_of_a_large_weight_keeps_its_rank(quantization):
    """The difference of the merged and the pretrained weight would have the rank of their rounding."""
    module = site("lora", quantization, rank=3, alpha=3e-4)
    assert _ranks(module.change())[0] == 3
    difference = module.merged_weight() - module.pretrained_weight()
    torch.testing.assert_close(module.change(), difference, atol=1e-6, rtol=0)


def test_what_was_folded_counts():
    module = site("lora", "none", rank=3, alpha=6)
    first = module.change().clone()
    module.fold()
    torch.testing.assert_close(module.change(), first)
    module.adapter.B.data += torch.randn(48, 3)
    assert _ranks(module.change())[0] == 6


def test_a_start_that_the_base_gave_up_is_no_change():
    module = site("lora", "none", rank=3, alpha=6)
    for anchored in (True, False):
        start = ADAPTERS.get("lora")(module.adapter.config, module.adapter.site)
        start.load_state_dict(module.adapter.state_dict())
        held = Adapted(Less(module.base, start, anchored), module.adapter)
        assert held.change().abs().max() == 0
