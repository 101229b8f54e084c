"""Block-LoRA's own statements: what it is equal to, and that its blocks stay alike."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.block_lora import BlockLoRA
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense


def make(rank=8, blocks=4, alpha=16.0, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    config = BlockLoRA.Config(method="block_lora", rank=rank, blocks=blocks, alpha=alpha, **settings)
    return Adapted(Dense(weight), BlockLoRA(config, Site("a", width, out))), weight


def test_it_is_lora_whose_rows_of_A_repeat():
    """LoRA's own factors cut along the rank, with every block of A the shared one: sum_i B_i A_i."""
    site, _ = make()
    torch.nn.init.normal_(site.adapter.B)
    lora = LoRA(LoRA.Config(method="lora", rank=8, alpha=16.0), site.adapter.site)
    lora.load_state_dict(
        {"A": site.adapter.A.repeat(4, 1), "B": torch.cat(list(site.adapter.B), dim=1).detach()}
    )
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), lora(x, site.base))


def test_one_block_is_lora():
    site, _ = make(blocks=1)
    torch.nn.init.normal_(site.adapter.B)
    lora = LoRA(LoRA.Config(method="lora", rank=8, alpha=16.0), site.adapter.site)
    lora.load_state_dict({"A": site.adapter.A, "B": site.adapter.B[0]})
    x = torch.randn(5, 16)
    assert torch.equal(site(x), lora(x, site.base))


def test_the_change_has_the_rank_of_one_block():
    site, weight = make()
    torch.nn.init.normal_(site.adapter.B)
    assert torch.linalg.matrix_rank(site.adapter.delta_weight(weight)) == 2


def test_blocks_stay_alike_so_it_is_a_lora_of_their_rank_with_a_faster_B():
    site, _ = make()
    lora = LoRA(LoRA.Config(method="lora", rank=2, alpha=16.0 * 2 / 8), site.adapter.site)
    lora.load_state_dict({"A": site.adapter.A, "B": site.adapter.B.sum(0)})
    x, goal = torch.randn(9, 16), torch.randn(9, 24)
    rates = [{"params": [lora.A], "lr": 0.1}, {"params": [lora.B], "lr": 0.4}]
    one, other = torch.optim.SGD(site.adapter.parameters(), lr=0.1), torch.optim.SGD(rates)
    for _ in range(4):
        for y, optimizer in ((site(x), one), (lora(x, site.base), other)):
            optimizer.zero_grad()
            (y - goal).square().mean().backward()
            optimizer.step()
    assert site.adapter.B.abs().max() > 0 and torch.equal(
        site.adapter.B, site.adapter.B[:1].expand(4, -1, -1)
    )
    torch.testing.assert_close(site(x), lora(x, site.base))


def test_a_square_layer_trains_almost_half_of_lora_and_never_less():
    config, square = BlockLoRA.Config(method="block_lora", rank=16, blocks=8), Site("a", 4096, 4096)
    assert BlockLoRA.count(config, square) == 2 * 4096 + 16 * 4096
    lora = LoRA.count(LoRA.Config(method="lora", rank=16), square)
    assert BlockLoRA.count(config, square) / lora == (1 + 1 / 8) / 2


def test_blocks_that_do_not_divide_the_rank_are_refused():
    with pytest.raises(ValidationError, match="blocks 8 does not divide rank 12; use 6"):
        make(rank=12, blocks=8)
