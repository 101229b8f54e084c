"""FineGates: gates, their noise, the share that is driven shut, and the cut that is the merge."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters.finegates import FineGates, gates, kurtosis_of, open_share
from lrft.methods.quant.none import Dense
from lrft.registry.axes import ADAPTERS, INITS, RESTARTS


def make(sites=1, width=16, out=24, **settings):
    torch.manual_seed(0)
    config = FineGates.Config(method="finegates", **settings)
    adapter = FineGates(config, Site("a", width, out, has_bias=True), sites)
    return Adapted(Dense(torch.randn(out, width), torch.randn(out)), adapter)


def test_it_begins_open_and_as_the_base_in_evaluation():
    site, x = make(width=500, out=500).eval(), torch.randn(5, 500)
    assert gates(site.adapter.rows).eq(1).all() and gates(site.adapter.columns).eq(1).all()
    torch.testing.assert_close(site(x), site.base(x), atol=0, rtol=0)
    assert float(site.adapter.rows.detach().std()) == pytest.approx(0.1, rel=0.2)


def test_the_gates_are_tanh_and_a_half_clipped():
    logits = torch.tensor([-9.0, -0.56, -0.54, 0.0, 0.54, 0.56, 9.0])
    expected = torch.tensor([0, 0, 0.0070, 0.5, 0.9930, 1, 1])
    torch.testing.assert_close(gates(logits), expected, atol=1e-4, rtol=0)


def test_the_model_that_is_cut_is_the_gated_one():
    """Rows and columns of shut gates are gone from the smaller map, and zeros in the merged one."""
    site, x = make().eval(), torch.randn(5, 16)
    with torch.no_grad():
        site.adapter.rows[::3], site.adapter.columns[1::2] = -2, -3
        site.adapter.rows[1] = 0.2
    rows, columns = (gates(logits) > 0 for logits in (site.adapter.rows, site.adapter.columns))
    merged, bias = site.merged_weight(), site.merged_bias()
    assert merged[~rows].eq(0).all() and merged[:, ~columns].eq(0).all() and bias[~rows].eq(0).all()
    cut = F.linear(x[:, columns], merged[rows][:, columns], bias[rows])
    torch.testing.assert_close(site(x)[:, rows], cut)
    assert site(x)[:, ~rows].eq(0).all()


def test_noise_is_of_training_alone_one_draw_a_vector_and_none_of_the_merge():
    site, x = make(), torch.randn(2, 5, 16)
    with torch.no_grad():
        site.adapter.rows.zero_()
        site.adapter.columns.fill_(9.0)  # beyond what the noise reaches, so that all is the rows'
    merged, base = site.merged_weight(), site.base(x)
    drawn = [(site(x) / base).detach() for _ in range(2)]
    for quotient in drawn:
        torch.testing.assert_close(quotient, quotient[:1, :1].expand_as(quotient), atol=1e-4, rtol=1e-4)
        assert 0.05 < float((quotient[0, 0] - 0.5).std()) < 0.2
    assert not torch.allclose(*drawn)
    torch.testing.assert_close(site.merged_weight(), merged)
    site.eval()
    assert torch.equal(site(x), site(x))
    torch.testing.assert_close(site(x), F.linear(x, merged, site.merged_bias()))


def test_the_penalty_is_the_distance_of_open_shares_from_the_target_by_hand():
    site = make(sites=3, target=0.4, strength=50.0)
    cdf = torch.distributions.Normal(0.0, 0.5).cdf
    shares = [cdf(logits.tanh() + 0.5).mean() for logits in (site.adapter.columns, site.adapter.rows)]
    expected = 50 / 3 * sum((share - 0.6).abs() for share in shares) / 2
    torch.testing.assert_close(site.adapter.penalty(), expected)


def test_by_kurtosis_what_is_not_shut_counts_by_the_fourth_moment_of_what_it_lets_pass():
    """The weights by hand, entry by entry; with a temperature that makes them differ."""
    site, x = make(shares="kurtosis", temperature=0.5), torch.randn(2, 5, 16)
    adapter = site.adapter
    with torch.no_grad():
        adapter.rows[::5], adapter.columns[1::3] = -2, -3
    assert adapter.penalty() is None  # before anything passed
    site(x)
    live = [(gates(logits) > 0).nonzero().flatten().tolist() for logits in (adapter.columns, adapter.rows)]
    mean, weight = x.mean((0, 1)), site.base.weight()

    def by_hand(lines):
        roots = []
        for line in lines:
            values = torch.stack(line)
            roots.append((((values - values.mean()) / values.var().sqrt()) ** 4).mean().sqrt())
        shares = [2.718281828 ** (-float(root) / 0.5) for root in roots]
        return [share / sum(shares) for share in shares]

    found = {}
    for name, along, across in (("columns", 0, 1), ("rows", 1, 0)):
        at = (
            (lambda i, j: weight[j, i] * mean[i])
            if name == "columns"
            else lambda i, j: weight[i, j] * mean[j]
        )
        found[name] = by_hand([[at(i, j) for j in live[across]] for i in live[along]])
    expected = 0.0
    for weights, logits, own in zip(found.values(), (adapter.columns, adapter.rows), live, strict=True):
        opened = torch.distributions.Normal(0.0, 0.5).cdf(logits.tanh() + 0.5)[own]
        expected = expected + ((torch.tensor(weights) * opened).sum() - 0.6).abs()
        assert max(weights) > 1.2 * min(weights)
    torch.testing.assert_close(adapter.penalty(), 50 * expected / 2, atol=1e-4, rtol=1e-4)
    assert adapter.penalty() is None and site.eval()(x) is not None and adapter.weights is None


def test_a_constant_column_has_no_kurtosis_and_padding_no_say():
    assert kurtosis_of(torch.ones(4, 3)).eq(0).all()
    site, x = make(shares="kurtosis"), torch.randn(1, 4, 16)
    padded = torch.cat([x, 100 * torch.ones(1, 2, 16)], dim=1)
    none = torch.empty(0, dtype=torch.int64)
    batch = Batch(none.new_zeros(1, 6), none.new_zeros(1, 6), ((0, 0, 4),), none, none)
    with computing(batch):
        weights = site.adapter.weigh(padded, site.base)
    for one, other in zip(weights, site.adapter.weigh(x, site.base), strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.sum()) == pytest.approx(1, abs=1e-5)


def test_by_kurtosis_it_can_be_planned_without_numbers():
    site = make(shares="kurtosis").to("meta")
    columns, rows = site.adapter.weigh(torch.empty(2, 5, 16, device="meta"), site.base)
    assert columns.shape == (16,) and rows.shape == (24,) and columns.is_meta


def test_the_open_share_grows_with_the_logits_and_passes_a_gradient_where_the_clip_does_not():
    logits = torch.full((8,), 1.0, requires_grad=True)
    (clipped,) = torch.autograd.grad(gates(logits).sum(), logits)
    (counted,) = torch.autograd.grad(open_share(logits), logits)
    assert clipped.eq(0).all() and counted.gt(0).all()
    shares = [float(open_share(torch.full((4,), value))) for value in (-2, -0.5, 0.5, 2)]
    assert shares == sorted(shares) and shares[0] < 0.2 < 0.99 < shares[-1]


def test_the_penalty_alone_shuts_the_share_that_was_asked_for():
    site = make(width=400, out=400, target=0.4)
    optimizer = torch.optim.Adam(site.adapter.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        site.adapter.penalty().backward()
        optimizer.step()
    for logits in (site.adapter.rows, site.adapter.columns):
        assert float(open_share(logits.detach())) == pytest.approx(0.6, abs=0.02)


def test_a_map_without_a_bias_gets_none_and_one_that_trains_is_gated():
    site, x = make().eval(), torch.randn(5, 16)
    with torch.no_grad():
        site.adapter.rows.fill_(0.2)
    expected, bias = site(x), site.base.bias
    site.base.bias = None
    torch.testing.assert_close(site(x), gates(site.adapter.rows) * site.base(x))
    site.train_bias(nn.Parameter(bias.clone()))
    torch.testing.assert_close(site(x), expected)


def test_the_penalty_is_the_mean_over_the_sites_of_the_recipe_and_restarts_are_refused():
    cls, config = ADAPTERS.get("finegates"), ADAPTERS.settings("finegates")
    sites = {name: Site(name, 4, 6) for name in "abcd"}
    parts = [cls.at(config, site, cls.shared(config, sites, 4)) for site in sites.values()]
    one = cls.at(config, sites["a"])
    one.load_state_dict(parts[0].state_dict())
    torch.testing.assert_close(4 * parts[0].penalty(), one.penalty())
    provided = ADAPTERS.declared("finegates").provides | INITS.declared("default").provides
    assert all(RESTARTS.declared(name).requires - provided for name in RESTARTS.names())


def test_the_count_is_a_gate_for_every_input_and_output():
    assert FineGates.count(None, Site("a", 4096, 11_008)) == 15_104
