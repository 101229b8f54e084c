"""SPT's own statements: the rule that decides between module and entries, written once more by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lrft.core.adapted import Adapted
from lrft.core.entries import Entries
from lrft.core.params import Site
from lrft.core.stages import Evidence, SitePlan
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.spt_sensitivity import SPT
from lrft.methods.inits.spt_sensitivity import SPTChoice
from lrft.methods.quant.none import Dense
from lrft.registry.errors import RecipeError

SHAPES = {"a": (24, 16), "b": (16, 24), "c": (16, 16), "d": (40, 16)}


def settings(**given):
    return SPT.Config(method="spt_sensitivity", rank=2, alpha=2.0, **given)


def init(**given):
    return SPTChoice(SPTChoice.Config(method="spt_sensitivity", **given))


def sensitivities(seed=0):
    """Of weights that matter more and less, one of them not at all."""
    generator = torch.Generator().manual_seed(seed)
    scale = {"a": 4.0, "b": 1.0, "c": 0.3, "d": 0.0}
    return {n: scale[n] * torch.randn(shape, generator=generator).square() for n, shape in SHAPES.items()}


def planned(method, scores=None):
    plan = {name: SitePlan(Site(name, width, out), settings()) for name, (out, width) in SHAPES.items()}
    scores = sensitivities() if scores is None else scores
    evidence = Evidence({name: {"batch_fisher": s} for name, s in scores.items()}, None, None)
    return method.plan(plan, evidence), plan


def count(plan):
    return sum(SPT.count(e.config, e.site) for e in plan.values() if e.config is not None)


def by_hand(scores, budget, threshold):
    """The rule as it is printed, over all entries in one list."""
    every = [(s, name) for name, score in scores.items() for s in score.flatten().tolist()]
    owners = [name for _, name in sorted(every, key=lambda pair: -pair[0])]
    best = None
    for step in range(1, 80):
        tau = math.ceil(budget * step / 50)
        found = {}
        for name, (out, width) in SHAPES.items():
            sensitive, module = owners[:tau].count(name), 2 * (out + width)
            found[name] = ("module", module) if sensitive >= module / threshold else ("entries", sensitive)
        off = abs(sum(number for _, number in found.values()) - budget)
        if best is None or off <= best[0]:  # as in the authors' code, of two that are as near the later
            best = off, found
    return best[1]


@pytest.mark.parametrize("threshold", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("budget", [7, 20, 60, 61, 150])
def test_the_rule_is_the_papers(budget, threshold):
    scores = sensitivities()
    found, _ = planned(init(budget=budget, threshold=threshold), scores)
    wanted = by_hand(scores, budget, threshold)
    for name, (kind, number) in wanted.items():
        config = found[name].config
        if kind == "module":
            assert config.entries is None
        else:
            assert (config is None and number == 0) or config.entries == number
    assert count(found) == sum(number for _, number in wanted.values())
    assert found["d"].config is None  # no entry of it matters


def test_a_budget_that_modules_jump_over_is_told(capsys):
    even = {
        name: torch.rand(shape, generator=torch.Generator().manual_seed(3)) for name, shape in SHAPES.items()
    }
    found, _ = planned(init(budget=150, threshold=10.0), even)
    off = count(found)
    assert (
        abs(off - 150) > 15
        and f"init: {off} numbers train, the nearest to the budget of 150" in capsys.readouterr().err
    )
    planned(init(budget=20, threshold=1.0), even)
    assert not capsys.readouterr().err


def test_a_higher_threshold_makes_more_modules_of_the_same_entries():
    counts = torch.tensor([1, 9, 15, 40, 80])
    costs = torch.full((5,), 80)
    modules = [int(init(threshold=t).structured(counts, costs).sum()) for t in (1.0, 2.0, 5.0, 10.0)]
    assert modules == [1, 2, 2, 4]


def test_a_dry_run_shows_the_budget_and_one_beyond_the_model_is_refused():
    method = init(share=0.1)
    assert count(method.foresee(planned(method)[1])) == method.wanted(planned(method)[1]) == 166
    with pytest.raises(RecipeError, match=r"init\.budget: 9,999 are more than the 1,664"):
        planned(init(budget=9999))


def test_entries_are_the_most_sensitive_and_the_module_is_lora():
    torch.manual_seed(0)
    weight, score = torch.randn(24, 16), sensitivities()["a"]
    few = SPT.at(settings(entries=7), Site("a", 16, 24))
    init().apply(few, weight, {"batch_fisher": score}, None)
    assert isinstance(few, Entries)
    assert set(few.places.tolist()) == set(score.flatten().topk(7).indices.tolist())
    module = SPT.at(settings(), Site("a", 16, 24))
    init().apply(module, weight, {"batch_fisher": score}, None)
    lora = LoRA(LoRA.Config(method="lora", rank=2, alpha=2.0), Site("a", 16, 24))
    torch.nn.init.normal_(module.B)
    lora.load_state_dict(module.state_dict())
    x = torch.randn(5, 16)
    assert torch.equal(Adapted(Dense(weight), module)(x), Adapted(Dense(weight), lora)(x))


def test_sensitivities_that_are_no_numbers_are_refused():
    with pytest.raises(RecipeError, match=r"init: sensitivities are not finite"):
        planned(init(), {**sensitivities(), "b": torch.full((16, 24), torch.nan)})
