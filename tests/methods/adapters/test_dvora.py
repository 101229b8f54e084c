"""DVoRA's own statements: what it is of DoRA and of VeRA."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.dora import DoRA
from lrft.methods.adapters.dvora import DVoRA
from lrft.methods.adapters.vera import VeRA
from lrft.registry.axes import QUANTIZERS

SITE = Site("a", 24, 40, has_bias=True)


def make(moved=True, **settings):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(40, 24), torch.randn(40))
    adapter = DVoRA(DVoRA.Config(method="dvora", rank=8, **settings), SITE)
    adapter.start(base.weight())
    if moved:
        torch.nn.init.normal_(adapter.v)
        torch.nn.init.normal_(adapter.u)
        torch.nn.init.uniform_(adapter.m, 0.5, 2.0)
    return adapter, base


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_is_dora_with_the_factors_that_vera_makes(dropout):
    adapter, base = make(dropout=dropout)
    A, B = adapter.branch().pair()
    dora = DoRA(DoRA.Config(method="dora", rank=8, alpha=8, dropout=dropout), SITE)
    dora.load_state_dict({"A": A, "B": B, "m": adapter.m.detach()})
    x, seed = torch.randn(5, 24), torch.randn(5, 40)
    outputs = []
    for one in (adapter, dora):
        torch.manual_seed(3)
        outputs.append(one(x.clone(), base))
        (outputs[-1] * seed).sum().backward()
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapter.m.grad, dora.m.grad, atol=1e-4, rtol=1e-4)
    frozen = adapter.bases[0].B[:40]
    torch.testing.assert_close(
        adapter.v.grad, (dora.B.grad * frozen) @ adapter.u.detach(), atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(
        adapter.u.grad, adapter.v.detach() @ (dora.B.grad * frozen), atol=1e-3, rtol=1e-4
    )


def test_with_the_magnitude_at_the_norms_it_is_vera():
    adapter, base = make()
    adapter.m.data.copy_(adapter.norms(base.weight()))
    vera = VeRA(VeRA.Config(method="vera", rank=8), SITE, adapter.bases[0])
    vera.load_state_dict({"u": adapter.u, "v": adapter.v})
    x = torch.randn(5, 24)
    torch.testing.assert_close(adapter(x, base), vera(x, base), atol=1e-4, rtol=1e-5)


def test_row_norms_of_the_merged_weight_are_the_magnitudes():
    adapter, base = make()
    merged = Adapted(base, adapter).merged_weight()
    torch.testing.assert_close(merged.norm(dim=1), adapter.m.detach(), atol=1e-5, rtol=1e-5)


def test_the_expanded_norms_are_the_norms_of_the_sum_with_one_gram_matrix_for_a_width():
    adapter, base = make()
    direct = adapter._direct(base.weight())
    torch.testing.assert_close(adapter._expanded(base.weight()), direct, atol=1e-4, rtol=1e-4)
    shared = adapter.bases[0]
    kept = shared.gram("A", 24)
    assert shared.gram("A", 24) is kept and adapter.gram(shared.A) is kept
    torch.testing.assert_close(kept, shared.A @ shared.A.mT)
    torch.testing.assert_close(shared.gram("A", 10), shared.A[:, :10] @ shared.A[:, :10].mT)
    with torch.no_grad():
        shared.A.mul_(2)
    torch.testing.assert_close(shared.gram("A", 24), 4 * kept)


def test_step_0_moves_the_magnitudes_and_v():
    adapter, base = make(moved=False)
    assert torch.equal(adapter.m / adapter.norms(base.weight()), torch.ones(40))
    adapter(torch.randn(3, 24), base).square().sum().backward()
    assert adapter.m.grad.all() and adapter.v.grad.all() and not adapter.u.grad.any()


def test_the_published_count_of_llama_7b():
    """DoRA's Table 5 prints 0.04 % of all parameters for rank 1024."""
    shapes = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    config = DVoRA.Config(method="dvora")
    found = 32 * sum(DVoRA.count(config, Site("a", *shape)) for shape in shapes)
    assert found == 2_949_120
    assert round(100 * found / (6_738_415_616 + found), 2) == 0.04
