"""What every restart promises, whatever its name, on dense and on 4-bit bases."""

import copy
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.changed import Changed
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS, RESTARTS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule
from lrft.training.flatten import flatten, unflatten

TOTAL = 12
every_restart = pytest.mark.parametrize("name", RESTARTS.names())
storages = pytest.mark.parametrize("storage", ["none", "nf4_reference"])
FOLDABLE = [
    name
    for name in ADAPTERS.names()
    if "mergeable" in ADAPTERS.declared(name).provides
    and not {"own_weights", "unfolded"} & ADAPTERS.declared(name).provides
    and "one_stage" not in ADAPTERS.declared(name).requires
]
FOLDING = [name for name in RESTARTS.names() if "foldable" in RESTARTS.declared(name).requires]
every_folding = pytest.mark.parametrize(
    "name", FOLDING
)  # the change moves into the base and the adapter starts anew


def adapters_of(name):
    """Adapters that the restart takes; those that it folds take no part of the base model's place."""
    wants = RESTARTS.declared(name).requires
    return (
        FOLDABLE
        if name in FOLDING
        else [n for n in ADAPTERS.names() if wants <= ADAPTERS.declared(n).provides]
    )


together = pytest.mark.parametrize(
    ("name", "adapter"), [(name, adapter) for name in RESTARTS.names() for adapter in adapters_of(name)]
)


COUNTED = {"every": 4, "links": 3}  # settings under which a run of twelve steps restarts twice


def short(name):
    """Those of them that the restart has; one that has none restarts where a task ends."""
    fields = RESTARTS.declared(name).config.model_fields
    return {key: value for key, value in COUNTED.items() if key in fields}


counting = pytest.mark.parametrize("name", [name for name in RESTARTS.names() if short(name)])


def make(name, storage="none", adapter="lora", total=TOTAL, seed=0, dtype=torch.float32, **settings):
    """A run over two adapted layers, with a restart as its only callback."""
    torch.manual_seed(1)
    declared = ADAPTERS.declared(adapter).config
    small = {"rank": 4, "alpha": 8.0, "block_size": 8, "group_size": 8}
    known = {key: value for key, value in small.items() if key in declared.model_fields}
    config = declared(method=adapter, **known)
    sites = []
    for index, (width, out) in enumerate([(32, 96), (96, 64)]):
        weight = (torch.randn(out, width) / width**0.5).to(dtype)
        base = QUANTIZERS.get(storage)(
            weight, torch.randn(out).to(dtype), QUANTIZERS.declared(storage).config()
        )
        part = ADAPTERS.get(adapter)(config, Site(f"{2 * index}", width, out, has_bias=True))
        part.start(base.weight())
        sites.append(Adapted(base, part))
    model = nn.Sequential(sites[0], nn.Tanh(), sites[1])
    infos = [
        ParamInfo(f"{path}.{key}", parameter, site.adapter.roles[key], path)
        for path, site in ((path, site) for path, site in model.named_children() if isinstance(site, Adapted))
        for key, parameter in site.adapter.named_parameters()
        if parameter.requires_grad
    ]
    optimizer = OPTIMIZERS.get("adamw").build(
        infos, OPTIMIZERS.declared("adamw").config(method="adamw", lr=0.01)
    )
    rates = schedule.build(optimizer, SCHEDULES.settings("linear"), total)
    run = Run(model, infos, optimizer, rates, total, seed=seed, tasks={"a": 4, "b": 8, "c": total})
    if name is not None:
        config = RESTARTS.declared(name).config(method=name, **(settings or short(name)))
        run.callbacks = [RESTARTS.get(name)(config)]
    return run


X = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
Y = torch.randn(16, 64, generator=torch.Generator().manual_seed(6))


def step(run, before_event=lambda run: None):
    """One step in the loop's order of events."""
    run.metrics = {}
    run.seed_step()
    run.fire("before_step")
    (run.model(X) - Y).square().mean().backward()
    run.fire("after_backward")
    run.optimizer.step()
    run.step += 1
    run.schedule.step()
    before_event(run)
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


def train(run, steps=TOTAL):
    run.fire("start")
    for _ in range(steps):
        step(run)
    return run


def contents(run):
    """Everything of the model that a checkpoint keeps."""
    found = {}
    for path, site in run.adapted():
        found[path] = {"adapter": dict(site.adapter.state_dict())}
        if isinstance(site.base, Changed):
            found[path]["change"] = {k: t for k in "ABD" if (t := getattr(site.base, k)) is not None}
    return found


def through_files(state):
    """As a checkpoint does it: tensors to safetensors, everything else to JSON, and back."""
    tensors, plain = flatten(state)
    stored = save({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()})
    return unflatten(load(stored), json.loads(json.dumps(plain)))


def same(a, b):
    (ta, pa), (tb, pb) = flatten(a), flatten(b)
    return pa == pb and ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta)


@storages
@together
def test_a_restart_leaves_the_function_unchanged(name, storage, adapter):
    run = make(name, storage, adapter)
    run.fire("start")
    outputs = {}

    def remember(run):
        with torch.no_grad():
            outputs[run.step] = run.model(X)

    restarted = []
    for _ in range(TOTAL - 1):
        step(run, remember)
        if "restarts" in run.metrics:
            restarted.append(run.step)
            with torch.no_grad():
                torch.testing.assert_close(run.model(X), outputs[run.step], atol=2e-5, rtol=1e-5)
    assert restarted == [4, 8]
    start = make(None, storage, adapter).model(X)
    assert not torch.allclose(start, outputs[4], atol=1e-3), "nothing was trained, so nothing was shown"


@every_folding
def test_the_stored_weight_is_never_rounded_anew(name):
    run = make(name, "nf4_reference")
    stored = [site.base.weight().clone() for _, site in run.adapted()]
    train(run)
    for before, (_, site) in zip(stored, run.adapted(), strict=True):
        assert torch.equal(site.base.original.weight(), before)
        assert site.base.change().abs().max() > 1e-4


@every_folding
@storages
def test_the_change_outgrows_the_rank_of_the_adapter(name, storage):
    run = train(make(name, storage))
    for _, site in run.adapted():
        change = site.merged_weight() - site.base.original.weight()
        values = torch.linalg.svdvals(change.double())
        assert (values > 1e-5 * values[0]).sum() == 12  # three stages of rank 4


@every_restart
@storages
@pytest.mark.parametrize("cut", [2, 4, 7, 8])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(name, storage, cut):
    whole = train(make(name, storage, seed=3))
    first = train(make(name, storage, seed=3), cut)
    kept = through_files(
        {
            "model": contents(first),
            "optimizer": first.optimizer.state_dict(),
            "schedule": first.schedule.state_dict(),
            "callbacks": [c.state_dict() for c in first.callbacks],
        }
    )
    second = make(name, storage, seed=3)
    for path, site in second.adapted():
        site.adapter.load_state_dict(kept["model"][path]["adapter"])
        if "change" in kept["model"][path]:
            site.base = Changed(site.base)
            site.base.set_change(**kept["model"][path]["change"])
    second.optimizer.load_state_dict(kept["optimizer"])
    for callback, state in zip(second.callbacks, kept["callbacks"], strict=True):
        callback.load_state_dict(state)
    second.schedule.load_state_dict(kept["schedule"])
    second.step = cut
    train(second, TOTAL - cut)
    assert same(contents(whole), contents(second))
    assert same(whole.optimizer.state_dict(), second.optimizer.state_dict())


@every_folding
def test_the_new_start_depends_on_seed_and_step_and_not_on_other_draws(name):
    def run(seed, draws):
        made = make(name, seed=seed)
        made.fire("start")
        for _ in range(4):
            step(made, lambda run: torch.randn(draws))
        return contents(made)

    assert same(run(0, 1), run(0, 50))
    assert not same(run(0, 1), run(1, 1))


@every_restart
def test_a_restart_disturbs_no_other_draws(name):
    run = make(name)
    run.fire("start")
    for _ in range(3):
        step(run)
    expected = []
    step(run, lambda run: expected.append(torch.get_rng_state()))
    assert "restarts" in run.metrics
    assert torch.equal(torch.get_rng_state(), expected[0])


@counting
def test_a_run_too_short_to_restart_is_refused(name):
    config = make(name, total=2).callbacks[0].config
    with pytest.raises(RecipeError, match=r"restart\.\w+: .*use at most"):
        config.check_length(2)
    config.check_length(TOTAL)


@every_restart
def test_without_its_state_a_run_counts_anew(name):
    method = train(make(name)).callbacks[0]
    other = copy.deepcopy(make(name).callbacks[0])
    assert method.state_dict() != other.state_dict()
    other.load_state_dict(through_files(method.state_dict()))
    assert method.state_dict() == other.state_dict()
