"""`lrft merge --requantize int_groups`: GPTQ's layout, exact where training was on a grid, else by error feedback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.core.adapted import adapted, adapters_off
from lrft.core.on_grid import InGroups
from lrft.export.feedback import Feedback
from lrft.export.requantize import Bits, _choose
from lrft.methods.quant.int_groups import IntGroups
from lrft.model.trained import frozen_layers
from lrft.ops.uniform import Grid
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, UsageError
from lrft.training.folder import RunFolder
from tests.each import each
from tests.export.test_feedback import layer
from tests.export.test_requantize import THREE_STEPS
from tests.methods.quant.test_int_groups import as_gptq, decoded, known
from tests.model.test_families import batch_of
from tests.model.test_packed import recipe_of

pytestmark = pytest.mark.usefixtures("short_answers")
DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = (
    """
model: {{name: {model}, dtype: float32}}
quantization: {storage}
adapter: {adapter}
init: {init}"""
    + THREE_STEPS
    + """export: {{tolerance: 10, dtype: float32}}
"""
)
SQFT = "{method: sqft, rank: 4, alpha: 8, bits: 4, group_size: 32, dropout: 0}"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    def make(adapter: str, init: str = "default", family: str = "llama", storage: str = "none") -> Path:
        folder = tmp_path_factory.mktemp("runs")
        text = RECIPE.format(model=tiny(family), adapter=adapter, init=init, data=DATA, storage=storage)
        (folder / "recipe.yaml").write_text(text)
        train(load_recipe(folder / "recipe.yaml"), folder / "run")
        return folder / "run"

    return make


@each("family", ["llama", "qwen2"])
def test_what_trained_on_a_grid_is_merged_into_its_bits_without_loss(family, trained, tmp_path):
    run = trained(SQFT, "{method: wanda, batches: 2}", family)
    out = tmp_path / family
    record = merge(RunFolder(run), out, requantize="int_groups")
    assert record["layers_exact"] == record["layers_in_bits"] == 14
    assert abs(record["loss_difference"]) < 1e-6 and record["kl_mean"] < 1e-9
    assert record["nearest"]["kl_mean"] > 1e3 * record["kl_mean"], "its own rounding would lose it"
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["bits"], said["group_size"]) == ("gptq", 4, 32)
    model = open_run(RunFolder(run))[2].model
    again = adapt(recipe_of(out, {"method": "int_groups", "bits": 4, "group_size": 32})).model
    read = {name: base.weight() for name, base, _ in frozen_layers(again)}
    for name, module in adapted(model.hf):
        assert torch.equal(read[name], module.merged_weight()), name
        assert (read[name] == 0).float().mean() > 0.45, "as sparse as the base was made"
    batch = batch_of([[[5, 6, 7, 8, 9, 10], [11, 12, 13]]], 9)
    with torch.no_grad(), adapters_off(again.hf):
        torch.testing.assert_close(again.eval()(batch), model.eval()(batch), atol=1e-5, rtol=1e-5)


def test_integers_that_the_layout_cannot_say_are_not_held():
    """Such as those of runs from before their steps were in half precision."""
    made = IntGroups(torch.randn(16, 64), None, IntGroups.Config(bits=4, group_size=32))
    before, codes = made.weight(), torch.zeros(16, 64, dtype=torch.uint8)
    step = torch.full((16, 2), 0.1)  # which is no float16
    given = InGroups(codes, torch.zeros(16, 2, dtype=torch.uint8), step)
    assert not made.hold(given) and torch.equal(made.weight(), before)
    assert not made.hold(given._replace(scale=torch.ones(16, 4)))
    assert not made.hold(given._replace(scale=torch.ones(16, 2), codes=codes + 16))
    assert made.hold(given._replace(scale=torch.ones(16, 2))) and not made.weight().any()


@each("bits", [2, 4, 8])
def test_a_layer_is_written_as_a_packer_of_its_own_writes_it(bits):
    n, z, s = known(out=32, width=64, size=32, bits=bits)
    made = IntGroups(torch.randn(32, 64), None, IntGroups.Config(bits=bits, group_size=32))
    assert made.hold(InGroups(n.to(torch.uint8), z.to(torch.uint8), s.float()))
    wanted, got = as_gptq(n, z, s, bits), made.stored(torch.float32)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) and wanted[key].dtype == got[key].dtype for key in wanted)
    assert torch.equal(made.weight(), decoded(n, z, s, torch.arange(64) // 32))
    assert torch.equal(IntGroups.unpack(got, None, torch.float32).weight(), made.weight())


@each("bits", [2, 4, 8])
def test_error_feedback_is_closer_than_nearest_and_what_is_written_is_what_was_chosen(bits):
    X, W = layer(128)
    W = torch.cat([W, W[:8] + 0.1])  # whole words
    kind = Bits(IntGroups, IntGroups.Config(bits=bits, group_size=32), torch.float32)
    feedback, made, nearest = Feedback(X.mT @ X), kind.stored(W), kind.stored(W).weight()
    _choose(made, W, feedback)
    errors = [((W - Q) @ X.mT).norm() for Q in (nearest, made.weight())]
    assert errors[1] < 0.8 * errors[0]
    assert torch.equal(
        IntGroups.unpack(made.stored(torch.float32), None, torch.float32).weight(), made.weight()
    )


def test_any_run_is_written_in_gptqs_layout(trained, tmp_path):
    storage = "{method: int_groups, bits: 4, group_size: 32}"
    run = trained("{method: lora, rank: 4, alpha: 8, targets: [self_attn.*]}", storage=storage)
    record = merge(RunFolder(run), tmp_path / "out", requantize="int_groups", keep_rank=8)
    assert (record["layers_exact"], record["layers_in_bits"]) == (0, 14)
    assert record["kl_mean"] < record["without_remainder"]["kl_mean"] < record["nearest"]["kl_mean"]
    assert (tmp_path / "out" / "remainder" / "adapter_config.json").is_file()


def test_a_step_in_half_precision_spans_what_the_exact_one_does():
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(6, 40), torch.zeros(1, 40), 1e-9 * torch.randn(1, 40)])
    exact, half = Grid.over(rows, 4), Grid.over(rows, 4).in_half()
    assert torch.equal(half.step.half().float(), half.step) and (half.step > 0).all()
    torch.testing.assert_close(half.nearest(rows)[:6], exact.nearest(rows)[:6], atol=5e-3, rtol=5e-3)
    assert not half.nearest(rows)[6].any() and half.zero.ge(0).all() and half.zero.le(15).all()


@each("bits", [3, 6])
def test_bits_that_the_layout_does_not_have_are_refused_in_one_sentence(bits, trained, tmp_path):
    run = trained(SQFT.replace("bits: 4", f"bits: {bits}"), "{method: wanda, batches: 2}")
    with pytest.raises(
        NotMergeable, match=rf"--requantize int_groups: .*{bits} bits.*merge without it"
    ) as caught:
        merge(RunFolder(run), tmp_path / f"out{bits}", requantize="int_groups")
    assert "\n" not in str(caught.value) and not (tmp_path / f"out{bits}").exists()


def test_steps_that_no_file_can_say_are_told(trained, tmp_path, monkeypatch, capfd):
    """Of runs from before steps were in half precision."""
    run = trained(SQFT, "{method: wanda, batches: 2}")
    monkeypatch.setattr(IntGroups, "hold", lambda self, given: False)
    record = merge(RunFolder(run), tmp_path / "out", requantize="int_groups")
    assert record["layers_exact"] == 0
    assert "and 11 more: trained on a grid of their own" in capfd.readouterr().err


def test_the_choices_of_storages_are_told(trained):
    with pytest.raises(UsageError, match=r"--requantize nf9: choose .*int_groups"):
        merge(RunFolder(trained("{method: lora, rank: 2}")), Path("x"), requantize="nf9")
