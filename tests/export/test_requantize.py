"""`lrft merge --requantize`: few bits that keep what was trained, read back by transformers as they were certified."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.data.eval_batches import eval_batches
from lrft.export.feedback import Feedback
from lrft.export.plain_form import read_pairs
from lrft.export.remainder import check_remainder
from lrft.export.requantize import Bits, _choose, cast, round_to_nearest
from lrft.export.served import with_pairs
from lrft.model.in_bits import load_in_bits
from lrft.model.in_turn import InTurn
from lrft.model.load import load_model
from lrft.ops.levels import Levels, search_scales
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import MissingExtra, NotMergeable, ToleranceError, UsageError
from lrft.training.folder import RunFolder
from tests.export.test_feedback import layer

pytestmark = pytest.mark.usefixtures("short_answers")
DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
THREE_STEPS = """
data:
  train: {{source: {data}/train.jsonl, limit: 30}}
  eval: {{source: {data}/test.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 3, batch_size: 2, max_length: 160, device: cpu}}
optimizer: {{method: adamw, lr: 2e-2}}
"""
RECIPE = (
    """
model: {{name: {model}, dtype: {dtype}}}
quantization: {storage}
adapter: {{method: lora, rank: 4, alpha: 8}}"""
    + THREE_STEPS
    + """export: {{tolerance: {tolerance}}}
"""
)
STORAGES = ("nf4", "fp4", "int8")


def bits(name: str, rank: int = 0, **settings) -> Bits:
    kind = QUANTIZERS.get(name)
    return Bits(kind, kind.Config(method=name, **settings), torch.float32, rank)


@pytest.fixture(scope="module")
def loud(tiny, tmp_path_factory) -> Path:
    """A model whose logits depend on its layers: random weights as they are drawn change next to nothing."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("loud") / "model"
    shutil.copytree(tiny(), folder)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.mul_(5 if "_proj" in name else 1)
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(loud, tmp_path_factory):
    made: dict = {}

    def get(storage: str = "nf4", dtype: str = "float32", model: Path = loud, tolerance: float = 10) -> Path:
        key = (storage, dtype, model, tolerance)
        if key not in made:
            folder = tmp_path_factory.mktemp("runs")
            text = RECIPE.format(model=model, dtype=dtype, storage=storage, data=DATA, tolerance=tolerance)
            (folder / "recipe.yaml").write_text(text)
            train(load_recipe(folder / "recipe.yaml"), folder / "run", resume=False)
            made[key] = folder / "run"
        return made[key]

    return get


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory) -> Path:
    """The run in NF4, with a remainder of rank 16."""
    out = tmp_path_factory.mktemp("written") / "model"
    merge(RunFolder(trained()), out, requantize="nf4", keep_rank=16)
    return out


@pytest.fixture
def dense(tiny):
    return load_model(ModelSection(name=str(tiny()), dtype="float32"))


def batches_of(run: Path):
    recipe, text, adaptation = open_run(RunFolder(run))
    rows = text.held_out_encoded(4)
    return adaptation.model, list(eval_batches(rows, recipe.eval.batch_tokens, text.pad_id))


@pytest.mark.parametrize("name", STORAGES)
def test_the_output_is_closer_than_by_the_formats_own_rounding_and_closer_still_with_a_remainder(name):
    X, W = layer(128)
    kind, feedback = bits(name), Feedback(X.mT @ X)
    made = kind.storage(W, None, kind.config)

    def error(weight: torch.Tensor) -> float:
        return float((X @ (W - weight).mT).norm())

    nearest = error(made.weight())
    _choose(made, W, feedback)
    chosen = error(made.weight())
    assert chosen < 0.6 * nearest
    A, B = feedback.remainder(W - made.weight(), 8)
    assert A.shape == (8, 128) and B.shape == (24, 8)
    assert error(made.weight() + B @ A) < 0.8 * chosen


def test_the_remainder_is_the_best_of_its_rank_for_these_inputs():
    """No factors of the rank leave less than the later singular values of D L, with H = L L^T as it is damped."""
    X, D = layer(20)
    feedback = Feedback(X.mT @ X)
    A, B = feedback.remainder(D, 5)
    H = (X.mT @ X).double()
    H += 0.01 * H.diagonal().mean() * torch.eye(20)
    L = torch.linalg.cholesky(H)
    least = torch.linalg.svdvals(D.double() @ L)[5:].norm()
    left = ((D - B @ A).double() @ L).norm()
    assert float(left) == pytest.approx(float(least), rel=1e-4)


@pytest.mark.parametrize("name", STORAGES)
def test_codes_decode_to_the_grid_they_were_chosen_on(name):
    kind = bits(name)
    W = torch.randn(6, 128, generator=torch.Generator().manual_seed(3))
    made = kind.storage(W, None, kind.config)
    made.search(W, torch.ones(128))
    scale, levels = made.grid()
    codes = torch.randint(0, len(levels), W.shape, generator=torch.Generator().manual_seed(4))
    made.take(codes)
    torch.testing.assert_close(made.weight(), scale * levels[codes], atol=1e-6, rtol=1e-6)


def test_scales_are_searched_by_what_an_error_costs():
    levels = Levels(torch.tensor([-1.0, 0.0, 1.0]))
    block = torch.tensor([[[0.8, 1.0]]])
    tied, first = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert search_scales(block, tied, levels).item() == pytest.approx(0.9, abs=0.021)
    assert search_scales(block, first, levels).item() == pytest.approx(0.8)
    assert search_scales(torch.zeros(1, 1, 2), tied, levels).item() == 0
    assert torch.equal(levels.codes(torch.tensor([math.nan, -9.0, math.inf])), torch.tensor([1, 0, 2]))


def test_feedback_is_closer_in_loss_than_nearest_rounding_and_closer_still_with_a_remainder(written):
    record = json.loads((written / "fidelity.json").read_text())
    assert (record["requantized"], record["layers_in_bits"], record["kept_rank"]) == ("nf4", 14, 16)
    assert record["layers_dense"] == ["lm_head"] and record["rounded_to_nearest"] == []
    assert record["calibration_rows"] == 30 and record["rounding"] == "feedback"
    nearest, without = record["nearest"], record["without_remainder"]
    assert record["kl_mean"] < 0.5 * without["kl_mean"] < 0.2 * nearest["kl_mean"]
    away = [abs(one["loss_difference"]) for one in (record, without, nearest)]
    assert away == sorted(away)
    assert "14 layers in nf4" in (written / "README.md").read_text()
    kept = read_pairs(written / "remainder")
    assert record["remainder_bytes"] == sum(pair.A.nbytes + pair.B.nbytes for pair in kept.values())


def test_transformers_and_peft_read_the_very_model_that_was_certified(written, trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    record = json.loads((written / "fidelity.json").read_text())
    run, batches = batches_of(trained())
    names = [name for name, _ in run.hf.named_modules() if name.endswith("_proj")]
    ours = load_in_bits(written, torch.float32, names, run, False)
    for rest, folder in ((record["without_remainder"], None), (record, written / "remainder")):
        theirs = AutoModelForCausalLM.from_pretrained(written)
        theirs = theirs if folder is None else PeftModel.from_pretrained(theirs, folder)
        pairs = {} if folder is None else read_pairs(folder)
        total = count = 0.0
        with torch.no_grad(), with_pairs(ours.hf.named_modules(), pairs, ours.device):
            for batch in batches:
                logits, alone = ours(batch), theirs(input_ids=batch.input_ids).logits
                for row, start, end in batch.documents:
                    # Some CPUs compute these layers in bfloat16, in which no two attention kernels agree.
                    torch.testing.assert_close(
                        alone[row, start:end], logits[row, start:end], atol=5e-3, rtol=0
                    )
                flat = alone.flatten(0, 1).index_select(0, batch.supervised)
                total += float(F.cross_entropy(flat, batch.targets, reduction="sum"))
                count += len(batch.targets)
        assert total / count == pytest.approx(record["loss_adapter"] + rest["loss_difference"], abs=1e-4)


def test_what_lrft_decodes_of_the_file_is_the_base_that_was_written(written, trained):
    """Its codes are taken over as those of any such upload, so that a training can go on from there."""
    run, batches = batches_of(trained())
    packed = load_model(ModelSection(name=str(written), dtype="float32"))
    names = list(packed.packed)
    assert len(names) == 14 and packed.packing.method == "nf4"
    read = load_in_bits(written, torch.float32, names, run, False)
    with torch.no_grad():
        torch.testing.assert_close(read(batches[0]), packed(batches[0]), atol=0.02, rtol=0.01)


def test_eight_bits_of_a_bfloat16_run_are_held_to_its_tolerance(trained, tmp_path):
    run = trained("none", "bfloat16", tolerance=1e-9)
    with pytest.raises(ToleranceError, match="`--keep-rank 16`, a storage of more bits") as caught:
        merge(RunFolder(run), tmp_path / "model", requantize="int8")
    record = caught.value.record
    assert record["kl_mean"] < 1e-3 and record["kept_rank"] == 0 and "without_remainder" not in record
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["quantization_config"]["load_in_8bit"]
    assert not (tmp_path / "model" / "remainder").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert not [p for p in (tmp_path / "model").iterdir() if p.is_dir()]  # the nearest rounding is gone


def test_rows_that_are_no_whole_number_of_blocks_leave_a_layer_dense(dense):
    found = round_to_nearest(dense, bits("nf4", block_size=128))
    assert sorted(found.layers) == [
        f"model.layers.{k}.mlp.down_proj" for k in (0, 1)
    ]  # 128 inputs; others have 64
    assert "lm_head" in found.dense and len(found.dense) == 13
    held = cast(dense, found, torch.bfloat16, stochastic=True)
    assert held["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert held["model.layers.0.mlp.down_proj.weight"].dtype == torch.uint8


def test_blocks_are_measured_on_what_changed_blocks_before_them_give(dense, trained):
    _, batches = batches_of(trained())
    turn = InTurn(dense, ["model.layers.0", "model.layers.1"], batches)
    with torch.no_grad():
        dense.hf.get_parameter("model.layers.0.mlp.down_proj.weight").mul_(3)
    turn.advance(0)
    found, expected = [], []
    site = dense.hf.get_submodule("model.layers.1.self_attn.q_proj")
    for seen, passes in ((found, turn.only(1)), (expected, None)):
        handle = site.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        if passes is None:
            for batch in batches:
                dense.hidden(batch)
        else:
            with passes as counted:
                for batch in counted:
                    dense.hidden(batch)
        handle.remove()
    assert len(found) == len(batches) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_blocks_that_do_not_compute_one_after_another_are_refused(dense, trained):
    _, batches = batches_of(trained())
    with pytest.raises(UsageError, match="blocks of LlamaForCausalLM do not compute one after another"):
        InTurn(dense, ["model.layers.1", "model.layers.0"], batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_rank": 8}, "--keep-rank 8: is what --requantize leaves"),
        ({"requantize": "none"}, "--requantize none: choose fp4, int8, int_groups, nf4 or q4_0"),
        ({"requantize": "nf4", "rounding": "nearest"}, "--rounding nearest: with --requantize"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_loaded(
    trained, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("lrft.api.merging.merge.opened", None)
    with pytest.raises(UsageError, match=message):
        merge(RunFolder(trained()), tmp_path / "model", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_remainder_above_the_rank_of_every_layer_is_refused(trained, tmp_path):
    with pytest.raises(UsageError, match=r"--keep-rank 65: is above the smaller side .*; write at most 64"):
        merge(RunFolder(trained()), tmp_path / "model", requantize="nf4", keep_rank=65)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_reader_is_named_before_anything_is_loaded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.api.merging.merge.opened", None)
    monkeypatch.setattr("lrft.model.in_bits.find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(MissingExtra, match="needs accelerate; install with `pip install accelerate`"):
        merge(RunFolder(trained()), tmp_path / "model", requantize="nf4")


def test_layers_that_are_stored_transposed_are_refused(trained, tiny, tmp_path):
    with pytest.raises(NotMergeable, match="GPT2LMHeadModel stores its layers as"):
        merge(RunFolder(trained("none", model=tiny("gpt2"))), tmp_path / "model", requantize="nf4")


def test_a_remainder_that_peft_would_take_for_experts_is_refused(tiny):
    model = load_model(ModelSection(name=str(tiny("gpt_oss")), dtype="float32"))
    check_remainder(model, ["model.layers.0.self_attn.q_proj"])
    with pytest.raises(UsageError, match="--keep-rank: PEFT takes down_proj of a mixture of experts"):
        check_remainder(model, ["model.layers.0.self_attn.q_proj", "model.layers.0.shared.down_proj"])
