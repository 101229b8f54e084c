"""LoKI's own statements: published counts, rows as the authors split them, and what no recipe may leave to chance."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.loki import LoKI
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import RecipeError


def make(out=20, width=12, percent=25.0, weight=None):
    torch.manual_seed(0)
    base = Dense(torch.randn(out, width), torch.randn(out)) if weight is None else weight
    adapter = LoKI(LoKI.Config(method="loki", percent=percent), Site("a", width, out, has_bias=True))
    with torch.no_grad():
        adapter.D.normal_()
    return Adapted(base, adapter)


@pytest.mark.parametrize(("percent", "millions"), [(10, 188), (20, 376), (30, 563)])
def test_counts_of_llama_3_1_8b_are_the_published_ones(percent, millions):
    config = LoKI.Config(method="loki", percent=float(percent))
    counted = 32 * LoKI.count(config, Site("down_proj", 14336, 4096))
    assert counted == 32 * (4096 * percent // 100) * 14336 and round(counted / 1e6) == millions


def test_it_is_the_weight_with_its_active_rows_trained_apart():
    """As the authors have it: active and frozen rows as two maps, their outputs put together and back in order."""
    site = make()
    rows, weight = site.adapter.rows.long(), site.base.weight()
    frozen = torch.tensor([row for row in range(20) if row not in rows.tolist()])
    x = torch.randn(2, 3, 12)
    active = F.linear(x, weight[rows] + site.adapter.D, site.base.bias[rows])
    parts = torch.cat([active, F.linear(x, weight[frozen], site.base.bias[frozen])], dim=-1)
    order = torch.cat([rows, frozen]).argsort()
    torch.testing.assert_close(site(x), parts[..., order])


def test_merging_is_exact_and_moves_no_other_row():
    site = make()
    merged, rows = site.merged_weight(), site.adapter.rows.long()
    weight = site.base.weight()
    assert torch.equal(merged[rows], weight[rows] + site.adapter.D)
    rest = torch.ones(20, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(merged[rest], weight[rest]) and rest.sum() == 15


def test_on_four_bits_it_trains_differences_beside_the_stored_weight():
    config = QUANTIZERS.declared("nf4_reference").config(method="nf4_reference")
    site = make(64, 64, 10.0, QUANTIZERS.get("nf4_reference")(torch.randn(64, 64), None, config))
    x, rows = torch.randn(5, 64), site.adapter.rows.long()
    expected = site.base(x)
    expected[:, rows] += x @ site.adapter.D.mT
    torch.testing.assert_close(site(x), expected)
    assert len(rows) == 6


def test_only_the_inputs_are_kept_for_the_backward_pass():
    site, kept = make(64, 32, 10.0), []
    x = torch.randn(7, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    own = [t for t in kept if t.shape[0] == 7]
    assert sum(t.numel() for t in own) == x.numel()


def test_no_row_at_all_is_refused():
    with pytest.raises(ValueError, match=r"percent 1 is none of 20 rows; use 5 or more"):
        make(percent=1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=default"], r"init\.method.* chooses no rows .* write init: loki, or adapter\.rows: random"),
        (["adapter.rows=random"], r"adapter\.rows.* write measured"),
        (["adapter={method: lora}"], "init"),
    ],
)
def test_rows_are_chosen_or_said_to_be_random(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("smoke/loki", ["model.name=x/y", *overrides])


def test_random_rows_are_a_control():
    assert load_recipe("smoke/loki", ["model.name=x/y", "adapter.rows=random", "init=default"])
