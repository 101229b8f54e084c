"""EVA's own statements, and PEFT's numbers."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
import torch

from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.params import Site
from lrft.core.stages import Evidence, SitePlan, Tokens, ranks_of
from lrft.methods.inits.eva import distribute
from lrft.model.attach import make_plan
from lrft.model.calibrate import calibrate
from lrft.model.load import load_model
from lrft.model.sites import choose, linear_sites
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, INITS, SIGNALS

WIDTHS = {"a": 20, "b": 20, "c": 12}


def eva(**settings):
    return INITS.get("eva")(INITS.declared("eva").config(method="eva", **settings))


def settings_of(rank=4, alpha=8.0, **more):
    return ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha, **more)


def rows_of(site):
    """Inputs whose variance is concentrated at a, spread out at b, and has three directions at c."""
    generator = torch.Generator().manual_seed(ord(site))
    scales = {"a": torch.logspace(1, -3, 20), "b": torch.ones(20), "c": torch.ones(12)}[site]
    scales = scales * (torch.arange(len(scales)) < (3 if site == "c" else 99))
    return torch.randn(200, len(scales), generator=generator) * scales + 1


def signal(site, init, settings):
    pca = SIGNALS.get("input_pca")(**init.signal_options("input_pca", settings))
    for rows in rows_of(site).split(50):
        pca.update(rows, None, Tokens(torch.arange(50), torch.arange(49)))
    return {"input_pca": pca.result()}


def planned(init, **more):
    """The plan over three sites, and their signals."""
    plan = {name: SitePlan(Site(name, width, 16), settings_of(**more)) for name, width in WIDTHS.items()}
    signals = {name: signal(name, init, site.config) for name, site in plan.items()}
    return init.plan(plan, Evidence(signals, None, None)), signals


def adapter_at(site):
    return ADAPTERS.get("lora")(site.config, site.site)


quiet = pytest.mark.filterwarnings("ignore:init.batches")


@quiet
def test_the_ranks_sum_to_the_budget_and_none_exceeds_rho_times_its_own():
    for rho in (1.0, 1.5, 2.0):
        plan, _ = planned(eva(rho=rho))
        ranks = ranks_of(plan)
        assert sum(ranks) == 12 and max(ranks) <= round(4 * rho)


@quiet
def test_rho_1_keeps_every_rank_and_alpha():
    plan, _ = planned(eva(rho=1.0))
    assert [site.config for site in plan.values()] == [settings_of()] * 3


def test_ranks_go_to_the_largest_ratios():
    ratios = {"a": torch.tensor([0.9, 0.05]), "b": torch.tensor([0.3, 0.2]), "c": torch.tensor([0.04, 0.03])}
    assert distribute(ratios, 3) == {"a": 1, "b": 2, "c": 0}
    assert distribute(ratios, 4) == {"a": 2, "b": 2, "c": 0}
    assert distribute({"a": torch.tensor([0.5, 0.2]), "b": torch.tensor([0.5, 0.2])}, 3) == {"a": 2, "b": 1}


def test_a_budget_beyond_all_components_is_refused():
    with pytest.raises(ValueError, match="budget of 3 is more than the 2 components"):
        distribute({"a": torch.tensor([0.9, 0.1])}, 3)


@quiet
def test_a_site_without_rank_gets_no_adapter_and_sites_without_one_stay_so():
    init = eva()
    ratios = {"a": [0.9, 0.8, 0.0, 0.0], "b": [0.1, 0.05, 0.0, 0.0]}
    signals = {
        name: {"input_pca": torch.cat([torch.eye(4, 6), torch.tensor([[9.0, r, 1.0] for r in found])], dim=1)}
        for name, found in ratios.items()
    }
    plan = {name: SitePlan(Site(name, 6, 6), settings_of(rank=1)) for name in "ab"}
    plan["off"] = SitePlan(Site("off", 6, 6), None)
    found = init.plan(plan, Evidence(signals, None, None))
    assert found["a"].rank == 2
    assert found["b"].config is None and found["off"].config is None
    assert plan["b"].config is not None, "the plan that was given is left alone"


@quiet
@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_of_every_site_stays(rslora):
    before = adapter_at(SitePlan(Site("a", 20, 16), settings_of(rslora=rslora))).scaling
    plan, _ = planned(eva(), rslora=rslora)
    assert len(set(ranks_of(plan))) > 1
    for site in plan.values():
        if site.config:
            assert adapter_at(site).scaling == pytest.approx(before)
    plan, _ = planned(eva(adjust_scaling=False), rslora=rslora)
    assert all(site.config.alpha == 8.0 for site in plan.values() if site.config)


@quiet
def test_A_spans_the_leading_components_of_the_inputs_and_the_weight_is_unchanged():
    init = eva()
    plan, signals = planned(init)
    for name, site in plan.items():
        if site.config is None:
            continue
        adapter = adapter_at(site)
        torch.nn.init.ones_(adapter.B)
        init.apply(adapter, torch.zeros(16, site.site.in_features), signals[name], None)
        A = adapter.A.detach()
        torch.testing.assert_close(A @ A.mT, torch.eye(len(A)), atol=1e-5, rtol=0)
        assert not adapter.B.any()
        X = rows_of(name).double()
        values = torch.linalg.svdvals(X - X.mean(0))[: len(A)]
        caught = ((X - X.mean(0)) @ A.double().mT).square().sum()
        assert caught > 0.98 * values.square().sum()


@quiet
def test_whitening_divides_by_the_root_of_the_singular_values():
    plan, signals = planned(eva())
    plain, white = adapter_at(plan["b"]), adapter_at(plan["b"])
    eva().apply(plain, torch.zeros(16, 20), signals["b"], None)
    eva(whiten=True).apply(white, torch.zeros(16, 20), signals["b"], None)
    r = plain.A.shape[0]
    expected = plain.A / signals["b"]["input_pca"][:r, 20, None].sqrt()
    torch.testing.assert_close(white.A, expected)


def test_components_that_have_not_settled_are_warned_of():
    with pytest.warns(UserWarning, match=r"init.batches: the components of \d of 3 layers had not settled"):
        planned(eva(tau=1.0, batches=4))


@quiet
def test_an_adapter_with_more_rank_than_components_is_refused():
    init = eva(rho=1.0)
    _, signals = planned(init)
    adapter = adapter_at(SitePlan(Site("a", 20, 16), settings_of(rank=5)))
    with pytest.raises(ValueError, match="rank 5 needs as many components"):
        init.apply(adapter, torch.zeros(16, 20), signals["a"], None)


def batches_of(count=3, rows=2, length=40):
    generator = torch.Generator().manual_seed(7)
    for number in range(count):
        ids = torch.randint(3, 400, (rows, length), generator=generator)
        ends = [length - 4 * number * row for row in range(rows)]
        documents = tuple((row, 0, end) for row, end in enumerate(ends))
        supervised = torch.cat([row * length + torch.arange(9, ends[row] - 1) for row in range(rows)])
        positions = torch.arange(length).expand(rows, -1)
        yield Batch(ids, positions, documents, supervised, ids.flatten()[supervised + 1])


def for_peft(batch):
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.supervised + 1] = batch.targets
    mask = torch.zeros_like(batch.input_ids)
    for row, start, end in batch.documents:
        mask[row, start:end] = 1
    return {"input_ids": batch.input_ids, "attention_mask": mask, "labels": labels.view_as(mask)}


@pytest.mark.parametrize(
    ("targets", "tau"), [(["o_proj", "down_proj"], 0.99), (["q_proj", "k_proj", "o_proj"], 0.9)]
)
def test_ranks_and_components_are_pefts(tiny, targets, tau):
    pytest.importorskip("peft")
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    model = load_model(ModelSection(name=str(tiny()), dtype="float32", attention="sdpa"))
    sites, _ = choose(linear_sites(model), targets)
    init = eva(tau=tau)
    plan = make_plan(sites, ADAPTERS.declared("lora").config(rank=3))
    seen = []

    def make(site, name):
        return SIGNALS.get(name)(**init.signal_options(name, plan[site].config))

    stream = islice(cycle(list(batches_of())), 200)
    signals = calibrate(model, sites, stream, Objective(None), make, init.needs, seen.append)
    plan = init.plan(plan, Evidence(signals, None, None))

    config = LoraConfig(r=3, target_modules=targets, init_lora_weights="eva", eva_config=EvaConfig(tau=tau))
    theirs = get_eva_state_dict(
        model.hf, [for_peft(batch) for batch in batches_of()], config, show_progress_bar=False
    )
    assert len(seen) < 200
    ours = {name: site.rank or 0 for name, site in plan.items()}
    assert sum(ours.values()) == sum(len(found) for found in theirs.values()) == 3 * len(sites)
    for name, found in theirs.items():
        alone = not name.endswith(("q_proj", "k_proj"))  # of equal ratios either site may be given one more
        assert ours[name] == len(found) if alone else abs(ours[name] - len(found)) <= 1
        rank = min(ours[name], len(found))
        components = signals[name]["input_pca"][:rank, : sites[name].in_features]
        torch.testing.assert_close(components, found[:rank].float(), atol=1e-5, rtol=1e-4)
