"""Just One Byte: a slope in a code, a step by the decoded slope, and a run that is done again from its record."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.optimizing import build_optimizer
from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import seeded
from lrft.methods.optim.just_one_byte import coded, decoded
from lrft.model.trained import parameter_infos, trained_tensors
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import _without_added
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import CheckpointError, RecipeError
from lrft.training.flatten import flatten, unflatten
from lrft.training.folder import RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.replayed import replay
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "just_one_byte.yaml"


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(dtype=torch.float32):
    kinds = {"a.A": ((2, 3), "lora_A"), "norm.weight": ((3,), "vector")}
    return [
        ParamInfo(name, nn.Parameter(tensor(*shape, seed=i).to(dtype)), role)
        for i, (name, (shape, role)) in enumerate(kinds.items())
    ]


def build(infos, method="just_one_byte", **settings):
    config = OPTIMIZERS.declared(method).config(method=method, **settings)
    return OPTIMIZERS.get(method).build(infos, config)


def quadratic(infos):
    return lambda: sum((info.param.double() - 1).square().sum() for info in infos)


def values(infos):
    return [info.param.detach().clone() for info in infos]


def test_a_decoded_slope_is_within_half_a_step_of_the_logarithm():
    slopes = torch.logspace(-3.4, 3.4, 2001, dtype=torch.float64).tolist()
    errors = [abs(decoded(coded(s)) / s - 1) for s in slopes]
    assert max(errors) <= math.exp(1 / 32) - 1 and max(errors) > 0.03
    assert all(decoded(coded(-s)) == -decoded(coded(s)) for s in slopes)
    assert all(coded(decoded(code)) == code for code in range(-255, 256))


def test_zero_denormals_and_giants_have_a_code():
    assert coded(0.0) == coded(-0.0) == 0 and decoded(0) == 0.0
    assert coded(5e-324) == 1 and coded(-5e-324) == -1 and coded(1e300) == 255
    assert decoded(1) == pytest.approx(math.exp(-127 / 16)) and decoded(-255) == pytest.approx(
        -math.exp(127 / 16)
    )


def test_a_step_is_that_of_the_decoded_slopes_over_the_root_of_their_number():
    infos = parameters()
    before, draw = values(infos), seeded(0)
    optimizer = build(infos, lr=0.01, samples=4)
    optimizer.step(quadratic(infos))
    for info, old in zip(infos, before, strict=True):
        step = sum(decoded(c) * draw(info.param, info.name, 0, i) for i, c in enumerate(optimizer.codes[0]))
        torch.testing.assert_close(info.param.data, old - 0.01 * step / 2)


def test_without_jitter_it_is_mezo_up_to_the_code():
    ours, theirs = parameters(), parameters()
    before = values(ours)
    build(ours, lr=0.01, eps=1e-2, jitter=0.0).step(quadratic(ours))
    build(theirs, "mezo", lr=0.01, eps=1e-2).step(quadratic(theirs))
    for one, other, old in zip(ours, theirs, before, strict=True):
        factor = (one.param.data - old) / (other.param.data - old)
        assert (factor - factor.flatten()[0]).abs().max() < 1e-3 and abs(factor.flatten()[0] - 1) < 0.033


def test_the_distance_varies_about_eps_and_is_drawn_from_step_and_sample():
    optimizer = build(parameters(), eps=1e-2, jitter=0.1, samples=2)
    found = [optimizer._distance({"eps": 1e-2, "steps": t}, i) for t in range(300) for i in range(2)]
    logs = (torch.tensor(found) / 1e-2).log()
    assert len(set(found)) == 600 and logs.mean().abs() < 0.02
    assert logs.std() == pytest.approx(0.1, rel=0.15)
    assert optimizer._distance({"eps": 1e-2, "steps": 0}, 1) == found[1]


def stored(optimizer):
    """The state as the files of a checkpoint hold it."""
    tensors, plain = flatten(optimizer.state_dict())
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}), json.dumps(plain)


def read(files):
    return unflatten(load(files[0]), json.loads(files[1]))


def descend(steps, infos, **settings):
    optimizer = build(infos, lr=0.002, **settings)
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.002 * 0.5 * (1 + math.cos(math.pi * t / steps))
        optimizer.step(quadratic(infos))
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_is_done_again_to_the_bit_from_its_record_alone(dtype):
    settings = {"samples": 2, "weight_decay": 0.1, "seed": 3}
    infos, again = parameters(dtype), parameters(dtype)
    before = values(infos)
    optimizer = descend(12, infos, **settings)
    other = build(again, lr=0.5, **settings)
    other.replay(read(stored(optimizer))["record"])
    for one, two, old in zip(infos, again, before, strict=True):
        assert torch.equal(one.param, two.param) and not torch.equal(one.param, old)
    for part in (optimizer, other):
        part.step(quadratic(infos if part is optimizer else again))
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, again, strict=True))


def test_what_a_run_trained_comes_of_its_start_and_the_record_in_its_checkpoint(on_tiny, tmp_path):
    """A schedule, an adapter and a checkpoint as `lrft train` has them; no data and no loss in the replay."""
    settings = [*on_tiny(SMOKE), "data.train.limit=30", "train.device=cpu", "~eval.tasks"]
    loaded = load_recipe(SMOKE, [*settings, "optimizer.samples=2", "optimizer.lr=0.01"])
    train(loaded, tmp_path / "run", resume=False)
    step = tmp_path / "run" / "checkpoints" / "step-3"
    tensors = load((step / "optimizer.safetensors").read_bytes())
    kept = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    record = unflatten(kept, json.loads((step / "state.json").read_text())["optimizer"])["record"]
    with torch.random.fork_rng():
        model = adapt(loaded.recipe).model
    infos = parameter_infos(model)
    before = values(infos)
    build(infos, lr=1.0, samples=2, eps=0.01).replay(record)
    trained = load((step / "adapter.safetensors").read_bytes())
    found = {info.name: info.param.detach() for info in infos}
    assert len(record["codes"]) == 3 and found.keys() <= trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in found)
    assert any(not torch.equal(info.param, old) for info, old in zip(infos, before, strict=True))


def test_a_thousand_steps_under_a_schedule_take_less_than_20_kilobytes():
    optimizer = build(parameters())
    optimizer.codes = [[t % 511 - 255] for t in range(1000)]
    optimizer.rates, optimizer.since = [[1 / (t + 1)] * 2 for t in range(1000)], list(range(1000))
    assert 14_000 < sum(len(part) for part in stored(optimizer)) < 20_000
    assert read(stored(optimizer))["record"]["codes"].shape == (1000, 1)


def test_rates_that_differ_between_groups_are_kept_apart():
    infos, again = parameters(), parameters()
    optimizer = build(infos, lr=0.01)
    optimizer.param_groups[1]["lr"] = 0.02
    optimizer.step(quadratic(infos))
    build(again, lr=0.5).replay(optimizer.state_dict()["record"])
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, again, strict=True))


def test_the_record_goes_on_after_a_resume():
    infos, others = parameters(), parameters()
    optimizer = descend(3, infos)
    resumed = build(others, lr=0.002)
    for own, other in zip(infos, others, strict=True):
        other.param.data.copy_(own.param.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(quadratic(infos)), resumed.step(quadratic(others))
    assert resumed.codes == optimizer.codes and len(resumed.codes) == 4
    with pytest.raises(ValueError, match="4 steps were made already; replay on parameters of step 0"):
        resumed.replay(optimizer.state_dict()["record"])


def test_a_step_without_a_finite_loss_is_in_no_record():
    infos = parameters()
    optimizer = build(infos)
    optimizer.step(lambda: torch.tensor(math.nan))
    assert optimizer.codes == [] == optimizer.rates and stored(optimizer)


def test_restoring_in_place_would_leave_what_no_record_tells_and_is_refused():
    with pytest.raises(ValueError, match="restore"):
        build(parameters(), restore="in_place")


def run_of(on_tiny, folder, *overrides, resume=False):
    """Six steps of the smoke recipe whose checkpoints are records, under a schedule."""
    path = SMOKE.with_name("just_one_byte_record.yaml")
    settings = [
        "data.train.limit=12",
        "data.eval.limit=2",
        "train.device=cpu",
        "train.max_steps=6",
        "train.keep_last=9",
    ]
    loaded = load_recipe(path, [*on_tiny(path), *settings, "optimizer.lr=0.01", *overrides])
    return loaded, train(loaded, folder, resume=resume)


@pytest.fixture(scope="module")
def recorded(on_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    return run_of(on_tiny, folder)[0], folder


def adapter_of(folder):
    return load((folder / "adapter" / "adapter_model.safetensors").read_bytes())


def test_a_checkpoint_holds_no_number_that_trains_and_gives_all_of_them_back(recorded, on_tiny, tmp_path):
    _, folder = recorded
    step = folder / "checkpoints" / "step-6"
    assert load((step / "adapter.safetensors").read_bytes()) == {}
    assert json.loads((step / "state.json").read_text())["parameters"][0].isalnum()
    run_of(on_tiny, tmp_path / "whole", "optimizer.checkpoint=whole")
    whole = load((tmp_path / "whole" / "checkpoints" / "step-6" / "adapter.safetensors").read_bytes())
    _, _, adaptation = open_run(RunFolder(folder), scores=True)
    found = trained_tensors(adaptation.model)
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in found)


def test_a_run_of_records_goes_on_to_the_bit(recorded, on_tiny, tmp_path):
    loaded, folder = recorded
    goes_on_unbroken(loaded, folder, 4, tmp_path / "cut")


def test_a_checkpoint_of_a_thousand_steps_is_under_20_kilobytes_on_disk(recorded, tmp_path):
    """Of a run with a rate of its own in every step; by step 6 all but the record is there."""
    _, folder = recorded
    step = folder / "checkpoints" / "step-6"
    other = (
        sum(path.stat().st_size for path in step.iterdir()) - (step / "optimizer.safetensors").stat().st_size
    )
    optimizer = build(parameters(), checkpoint="record")
    optimizer.codes = [[t % 511 - 255] for t in range(1000)]
    optimizer.rates, optimizer.since = [[1 / (t + 1)] * 2 for t in range(1000)], list(range(1000))
    size = len(stored(optimizer)[0]) + other
    assert 10_000 < size < 20_000
    assert read(stored(optimizer))["record"].keys() == {"codes", "rates"}


def test_steps_that_give_other_weights_are_refused_in_one_sentence(recorded, tmp_path):
    """A code that was changed stands for whatever makes the start or the updates others."""
    _, folder = recorded
    with OpenCheckpoint(folder / "checkpoints" / "step-6") as saved, torch.random.fork_rng():
        model = adapt(recorded[0].recipe).model
        optimizer = build_optimizer(recorded[0].recipe, parameter_infos(model))
        parameter_infos(model)[0].param.data.view(-1)[0] += 1.0
        with pytest.raises(
            CheckpointError, match=r"its 6 steps, done again, give other weights.*use adapter/"
        ):
            replay(optimizer, saved, trained_tensors(model))


@pytest.mark.parametrize(
    "changes", [["init=pissa"], ["restart={method: relora, every: 2}"], ["trainable.update=stochastic"]]
)
def test_what_a_record_does_not_say_is_refused_before_loading(changes):
    with pytest.raises(RecipeError, match=r"optimizer\.checkpoint: a record of steps does not say"):
        load_recipe("smoke/just_one_byte_record", [*changes, "model.name=x/y"])


def test_an_adapter_that_keeps_more_than_what_trains_is_refused(on_tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"optimizer\.checkpoint: record: .* is not moved by the optimizer"):
        run_of(on_tiny, tmp_path / "run", "adapter={method: osf, directions: 4}")


def test_a_training_that_begins_with_a_record_is_told_how(recorded, on_tiny):
    _, folder = recorded
    loaded = load_recipe("smoke/lora", [*on_tiny(SMOKE), f"model.adapter={folder}"])
    with pytest.raises(RecipeError, match=r"model\.adapter: .*holds what the steps were.*merge the run"):
        adapt(loaded.recipe)


def test_recipes_of_before_keep_their_hash():
    """As computed by the version that had no such setting."""
    before = load_recipe("smoke/just_one_byte", ["model.name=x/y"]).recipe
    assert "checkpoint" not in _without_added(before)["optimizer"]
