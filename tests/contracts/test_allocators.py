"""What every registered allocator owes: the budget, an unchanged start, a resume to the bit, an exact export."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.callback import Callback, TimedMethod
from lrft.core.elastic import Elastic
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.core.stages import Planner, SitePlan
from lrft.registry.axes import ADAPTERS, ALLOCATORS, QUANTIZERS
from lrft.registry.errors import RecipeError
from lrft.training.flatten import flatten, unflatten

STEPS = 20
# Short enough for twenty steps, where the defaults are meant for thousands.
QUICK = {
    "every": 2,
    "levels": 5,
    "kappa": 0.3,
    "init_warmup": 1,
    "interval": 2,
    "target_rank": 4,
    "increment": 1,
    "episode": 4,
    "denoising": 5,
}


def fitting_adapter(requires: frozenset[str]) -> str | None:
    """An adapter that provides what can only come from one; None where none does."""
    names = ADAPTERS.names()
    wanted = requires & frozenset().union(*(ADAPTERS.declared(name).provides for name in names)) - {
        "adapters"
    }
    return next((name for name in names if wanted <= ADAPTERS.declared(name).provides), None)


def cases() -> list[tuple[str, str]]:
    """Allocator and adapter: every elastic one with gates for those that ask for `elastic`."""
    found = []
    for name in ALLOCATORS.names():
        requires = ALLOCATORS.declared(name).requires
        if issubclass(ALLOCATORS.get(name), TimedMethod) and requires >= {"elastic"}:
            elastic = [
                adapter for adapter in ADAPTERS.names() if "elastic" in ADAPTERS.declared(adapter).provides
            ]
            found += [(name, adapter) for adapter in elastic if hasattr(ADAPTERS.get(adapter), "composed")]
    return found


CASES = pytest.mark.parametrize(("name", "adapter"), cases())
EVERY = pytest.mark.parametrize("name", ALLOCATORS.names())


class Flat:
    """A schedule that does nothing."""

    def step(self) -> None:
        """Keep the rate."""


def settings(name: str) -> object:
    config = ALLOCATORS.declared(name).config
    return config(method=name, **{key: value for key, value in QUICK.items() if key in config.model_fields})


def make(name: str, adapter: str, clip: float | None = 1.0, steps: int = STEPS) -> tuple[Run, TimedMethod]:
    """A run over four frozen layers with adapters, and the allocator that acts in it."""
    torch.manual_seed(0)
    method = ALLOCATORS.get(name)(settings(name))
    config = ADAPTERS.declared(adapter).config(method=adapter, rank=8)
    widths = [6, 10, 8, 12, 5]
    sites = [Site(str(2 * i), *pair) for i, pair in enumerate(pairwise(widths))]
    plan = {site.name: SitePlan(site, config) for site in sites}
    plan = method.plan(plan, None)
    layers: list[nn.Module] = []
    for site in sites:
        weight = torch.randn(site.out_features, site.in_features) / site.in_features**0.5
        base = QUANTIZERS.get("none")(weight, None, QUANTIZERS.declared("none").config(method="none"))
        part = ADAPTERS.get(adapter)(plan[site.name].config, site)
        layers += [Adapted(base, part), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    infos = [
        ParamInfo(f"{site}.{key}", parameter, module.adapter.roles[key], site)
        for site, module in ((s.name, model.get_submodule(s.name)) for s in sites)
        for key, parameter in module.adapter.named_parameters()
    ]
    optimizer = torch.optim.AdamW([info.param for info in infos], lr=0.02, weight_decay=0.01)
    run = Run(model, infos, optimizer, Flat(), steps, clip=clip)
    run.callbacks = [method]
    return run, method


def train(run: Run, until: int) -> list[dict[str, object]]:
    """The order of events of the real loop, on data that is a function of the step; what each step recorded."""
    run.fire("start")
    lines = []
    while run.step < until:
        run.metrics = {}
        run.seed_step()
        run.fire("before_step")
        for part in range(2):
            generator = torch.Generator().manual_seed(10 * run.step + part)
            x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 5, generator=generator)
            loss = (run.model(x) - y).square().mean() / 2
            penalties = [p for p in (adapter.penalty() for adapter in run.penalized) if p is not None]
            (loss + sum(penalties, torch.zeros(())) / 2).backward()
            run.record(loss=loss.item())
        run.fire("after_backward")
        if run.clip is not None:
            torch.nn.utils.clip_grad_norm_([info.param for info in run.parameters], run.clip)
        run.optimizer.step()
        run.step += 1
        run.fire("after_step")
        lines.append(run.metrics)
        run.optimizer.zero_grad(set_to_none=True)
    if until == run.total_steps:
        run.fire("finish")
    return lines


def adapters(run: Run) -> dict[str, Elastic]:
    return {site: module.adapter for site, module in run.adapted()}


def live(run: Run) -> dict[str, int]:
    return {site: len(adapter.gates().nonzero()) for site, adapter in adapters(run).items()}


@EVERY
def test_an_allocator_is_asked_for_a_plan_and_is_heard_in_the_events_that_it_overrides(name):
    cls = ALLOCATORS.get(name)
    assert issubclass(cls, Planner)
    acts = any(
        getattr(cls, event, None) not in (None, getattr(Callback, event))
        for event in ("start", "before_step", "after_step")
    )
    assert acts == issubclass(cls, TimedMethod)


@EVERY
def test_some_adapter_provides_what_an_allocator_requires_of_it(name):
    assert fitting_adapter(ALLOCATORS.declared(name).requires) is not None


@CASES
def test_nothing_is_changed_before_the_first_step(name, adapter):
    run, _ = make(name, adapter)
    x = torch.randn(7, 6)
    plain = copy.deepcopy(run.model)
    for module in plain:
        if isinstance(module, Adapted):
            module.enabled = False
    run.fire("start")
    assert torch.equal(run.model(x), plain(x))


@CASES
def test_the_budget_is_met_exactly(name, adapter):
    run, method = make(name, adapter)
    train(run, STEPS)
    ranks = run.summary["ranks"]
    assert ranks == live(run) == {site: int(rank) for site, rank in ranks.items()}
    if "target_rank" in type(method.config).model_fields:
        assert sum(ranks.values()) == 4 * method.config.target_rank


@CASES
def test_the_budget_is_met_exactly_when_all_scores_tie(name, adapter):
    """Without a gradient, and with nothing learnt, every component scores 0."""
    run, method = make(name, adapter)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    for part in adapters(run).values():
        nn.init.zeros_(part.get_parameter("A"))
    train(run, STEPS)
    if "target_rank" in type(method.config).model_fields:
        assert sum(run.summary["ranks"].values()) == 4 * method.config.target_rank


@CASES
def test_what_is_recorded_is_plain_and_says_ranks_masks_and_importance(name, adapter):
    run, _ = make(name, adapter)
    lines = [line for line in train(run, STEPS) if "ranks" in line]
    assert json.loads(json.dumps(lines)) == lines
    assert lines and len(lines) < STEPS
    for line in lines:
        assert line["rank_total"] == sum(line["ranks"].values())
        assert {site: mask.count("1") for site, mask in line["masks"].items()} == line["ranks"]
        assert line["importance"].keys() == line["ranks"].keys()
    assert lines[-1]["ranks"] == run.summary["ranks"]


@CASES
def test_the_final_ranks_stay_as_they_are(name, adapter):
    run, method = make(name, adapter)
    if "target_rank" not in type(method.config).model_fields:
        return  # without a budget there is no last phase
    settled = None
    for step in range(1, STEPS + 1):
        train(run, step)
        if step >= STEPS - 4:
            now = [adapter.gates() != 0 for adapter in adapters(run).values()]
            assert settled is None or all(map(torch.equal, settled, now))
            settled = now


@CASES
@pytest.mark.parametrize("cut", [1, 9, 18])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(name, adapter, cut):
    whole, _ = make(name, adapter)
    expected = train(whole, STEPS)
    first, method = make(name, adapter)
    train(first, cut)
    state = {
        "model": {k: v.clone() for k, v in first.model.state_dict().items()},
        "optimizer": copy.deepcopy(first.optimizer.state_dict()),
        "method": method.state_dict(),
    }
    tensors, values = flatten(state)
    again = unflatten({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(values)))
    second, resumed = make(name, adapter)
    second.model.load_state_dict(again["model"])
    second.optimizer.load_state_dict(again["optimizer"])
    resumed.load_state_dict(again["method"])
    second.step = cut
    assert train(second, STEPS) == expected[cut:]
    assert second.summary == whole.summary
    for (key, a), (_, b) in zip(
        whole.model.state_dict().items(), second.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), key


@CASES
@pytest.mark.parametrize("until", [9, STEPS])
def test_the_exported_factors_are_the_change_of_the_weight(name, adapter, until):
    run, _ = make(name, adapter)
    train(run, until)
    for part in adapters(run).values():
        change = part.delta_weight(torch.zeros(part.site.out_features, part.site.in_features))
        form = type(part).peft_form()
        tensors, keys = form.tensors(part, None), form.keys_of(part)
        scale = keys["lora_alpha"] / keys["r"]
        assert tensors["A"].shape[0] == keys["r"]
        torch.testing.assert_close(scale * tensors["B"] @ tensors["A"], change, atol=1e-6, rtol=1e-6)


@CASES
def test_a_target_beyond_the_adapters_is_refused(name, adapter):
    config = ALLOCATORS.declared(name).config
    if "target_rank" not in config.model_fields:
        return
    method = ALLOCATORS.get(name)(config(method=name, target_rank=9))
    plan = {"a": SitePlan(Site("a", 4, 4), ADAPTERS.declared(adapter).config(method=adapter, rank=8))}
    with pytest.raises(RecipeError, match=r"target_rank.*average of 9 .* 8\)"):
        method.plan(plan, None)


@CASES
def test_an_adapter_without_gates_is_refused(name, adapter):
    run, _ = make(name, adapter)
    declared = ADAPTERS.declared("lora")
    for site, module in run.adapted():
        module.adapter = ADAPTERS.get("lora")(declared.config(method="lora"), Site(site, 4, 4))
    with pytest.raises(RecipeError, match=r"allocate\.method.*choose adapter"):
        run.fire("start")


@CASES
def test_a_run_that_is_too_short_is_refused_before_it_starts(name, adapter):
    run, _ = make(name, adapter, steps=1)
    ranks = [module.adapter.capacity for _, module in run.adapted()]
    with pytest.raises(
        RecipeError, match=r"allocate\.\w+: .*\b1 step|allocate\.\w+: .*(write|train for longer)"
    ):
        run.callbacks[0].config.check_length(1, ranks)
