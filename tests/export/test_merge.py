"""`lrft merge`: what is on disk is what was trained, measured, and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.merging import merge as merging
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.rows import training_rows
from lrft.core.adapted import adapted
from lrft.data.eval_batches import eval_batches
from lrft.data.sources import read_rows
from lrft.export.feedback import moments
from lrft.export.fidelity import compare
from lrft.export.merge import Rounding, merge_into
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Source
from lrft.registry.errors import DataError, NumericalError, ToleranceError
from lrft.training.folder import RunFolder
from tests.older_run import as_older

pytestmark = pytest.mark.usefixtures("short_answers")
DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: {dtype}}}
{body}
data:
  train: {{source: {data}/train.jsonl, limit: 30}}
  eval: {{source: {data}/test.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 3, batch_size: 2, max_length: 160, device: cpu}}
optimizer: {{method: adamw, lr: {lr}}}
"""
LORA = "adapter: {method: lora, rank: 4, alpha: 8}"
NF4 = f"{LORA}\nquantization: nf4"
FULL = "adapter: null\ntrainable: full"


@pytest.fixture(scope="module")
def coarse(tiny, tmp_path_factory) -> Path:
    """A model whose float32 weights are bfloat16 numbers, as those of published models are."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("coarse") / "model"
    shutil.copytree(tiny(), folder)
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(coarse, tmp_path_factory):
    """`trained(body)` -> the folder of a run of three steps; the same one for the same arguments."""
    made: dict = {}

    def get(body: str = LORA, dtype: str = "bfloat16", lr: float = 2e-3, model: Path | None = None) -> Path:
        key = (body, dtype, lr, model)
        if key not in made:
            folder = tmp_path_factory.mktemp("runs")
            text = RECIPE.format(model=model or coarse, dtype=dtype, body=body, data=DATA, lr=lr)
            (folder / "recipe.yaml").write_text(text)
            train(load_recipe(folder / "recipe.yaml"), folder / "run", resume=False)
            made[key] = folder / "run"
        return made[key]

    return get


def merge(run: Path, out: Path, **options) -> dict:
    return merging.merge(RunFolder(run), out, options.pop("onto", None), **options)


def edited(run: Path, folder: Path, **replaced: str) -> Path:
    """A copy of a run whose recipe says something else under keys of that name."""
    as_older(Path(shutil.copytree(run, folder)))
    lines = (folder / "recipe.yaml").read_text().splitlines()
    for key, value in replaced.items():
        lines = [
            f"{line.partition(':')[0]}: {value}" if line.strip().startswith(f"{key}:") else line
            for line in lines
        ]
    (folder / "recipe.yaml").write_text("\n".join(lines) + "\n")
    return folder


def exact_divergence(run: Path) -> dict[str, float]:
    """KL from the trained model of its weights rounded to bfloat16, by method; everything computed in float32."""
    recipe, text, adaptation = open_run(RunFolder(run))
    batches = list(eval_batches(text.held_out_encoded(4), 4096, text.pad_id))
    rows = list(eval_batches(text.usable(training_rows(recipe), "data.train", 20), 4096, text.pad_id))
    objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
    found = {}
    for method in ("stochastic", "feedback", "nearest"):
        dense = load_model(recipe.model)
        rounding = Rounding(method, lambda layers: moments(adaptation.model, layers, rows, objective))
        merge_into(dense, adaptation.model, onto="dequantized", dtype=torch.bfloat16, rounding=rounding)
        dense.hf.float()
        found[method] = compare(adaptation.model, dense, batches)["kl_mean"]
    return found


def test_a_short_run_survives_stochastic_rounding_and_feedback_but_not_nearest(trained):
    found = exact_divergence(trained(FULL, "float32", lr=1e-5))
    assert found["stochastic"] < 0.5 * found["nearest"]
    assert found["feedback"] < 0.5 * found["nearest"]


def test_the_record_shows_nearest_rounding_beside_and_the_bytes_are_the_same_twice(trained, tmp_path):
    record = merge(trained(NF4), tmp_path / "a")
    assert record["rounding"] == "stochastic" and record["rows_from"] == "data.eval" and record["rows"] == 4
    assert record == json.loads((tmp_path / "a" / "fidelity.json").read_text())
    assert record["nearest"].keys() == {"kl_mean", "loss_difference"}
    nearest = merge(trained(NF4), tmp_path / "c", rounding="nearest")
    assert "nearest" not in nearest
    assert nearest["kl_mean"] == pytest.approx(record["nearest"]["kl_mean"], rel=1e-3, abs=1e-9)
    merge(trained(NF4), tmp_path / "b")
    bytes_of = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert bytes_of["a"] == bytes_of["b"] != bytes_of["c"]


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "feedback"])
def test_what_the_run_did_not_change_keeps_its_bytes(trained, coarse, tmp_path, rounding):
    body = "adapter: {method: lora, rank: 4, alpha: 8, targets: [q_proj]}"
    merge(trained(body), tmp_path / "merged", rounding=rounding)
    before, after = (load_file(folder / "model.safetensors") for folder in (coarse, tmp_path / "merged"))
    changed = {name for name in after if not torch.equal(after[name], before[name].to(torch.bfloat16))}
    assert changed == {name for name in after if "q_proj" in name}


def test_feedback_says_its_rows_and_what_it_does_not_apply_to(trained, tmp_path):
    record = merge(
        trained(FULL, "float32", lr=1e-3), tmp_path / "merged", rounding="feedback", dtype="float16"
    )
    assert record["calibration_rows"] == 30  # all there are
    assert "model.embed_tokens.weight" in record["rounded_stochastically"]
    assert "model.norm.weight" in record["rounded_stochastically"]
    assert not any("_proj" in name for name in record["rounded_stochastically"])
    assert record["kl_mean"] < 1e-4


@pytest.mark.parametrize("body", [LORA, FULL])
@pytest.mark.parametrize("method", ["stochastic", "feedback"])
def test_transposed_layers_are_rounded_as_they_are_used(trained, tiny, tmp_path, method, body):
    run = trained(body, "float32", model=tiny("gpt2"))
    record = merge(run, tmp_path / "merged", rounding=method, dtype="bfloat16")
    assert record["kl_mean"] < 1e-4
    if method == "feedback":
        assert not any("c_attn.weight" in name for name in record["rounded_stochastically"])


def test_no_more_rows_are_encoded_than_are_asked_for(trained, tmp_path):
    _, text, _ = open_run(RunFolder(trained()))
    path, good = tmp_path / "rows.jsonl", '{"prompt": "a", "completion": "b"}\n'
    path.write_text(good * 3 + '{"prompt": "a"}\n')
    assert len(text.usable(read_rows(Source(source=str(path)), "train"), "data.train", 3)) == 3
    with pytest.raises(DataError, match=r"rows\.jsonl:4"):
        text.usable(read_rows(Source(source=str(path)), "train"), "data.train", 4)


def test_float32_has_nothing_to_round(trained, tmp_path):
    record = merge(trained(FULL, "float32", lr=1e-3), tmp_path / "merged", rounding="nearest")
    assert record["rounding"] is None and "nearest" not in record and record["kl_mean"] < 1e-9


def test_the_original_weights_are_added_to_before_they_are_rounded(trained, coarse, tmp_path):
    """A float32 base exported lower is not rounded twice."""
    record = merge(trained(LORA, "float32"), tmp_path / "merged", onto="original", dtype="bfloat16")
    assert record["onto"] == "original" and record["kl_mean"] < 1e-4


@pytest.mark.parametrize(
    ("body", "options", "remedy"),
    [
        (NF4, {"onto": "original"}, "--onto dequantized"),
        (LORA, {"onto": "original"}, "--rounding feedback` or `--dtype float32"),
        (NF4, {}, "--rounding feedback` or `--dtype float32"),
        (NF4, {"rounding": "nearest"}, "--rounding stochastic"),
        (NF4, {"rounding": "feedback"}, "`--dtype float32` stays closer"),
        (NF4, {"dtype": "float16", "rounding": "nearest"}, "--rounding stochastic"),
        (NF4, {"dtype": "float32"}, "export.tolerance"),
    ],
)
def test_over_tolerance_names_what_would_stay_closer(trained, tmp_path, body, options, remedy):
    run = edited(trained(body), tmp_path / "run", tolerance="1e-12")
    with pytest.raises(ToleranceError) as caught:
        merge(run, tmp_path / "merged", **options)
    assert remedy in str(caught.value).partition("; ")[2]
    assert (tmp_path / "merged" / "fidelity.json").exists()


def test_the_remedy_is_nearest_where_that_was_closer_and_bfloat16_where_float16_overflows(
    trained, tmp_path, monkeypatch
):
    far, close = {"kl_mean": 1.0, "loss_difference": 0.0}, {"kl_mean": 0.0, "loss_difference": 0.0}
    figures = iter([far, close, {"kl_mean": float("nan"), "loss_difference": float("nan")}, far])
    monkeypatch.setattr("lrft.api.merging.merge.compare", lambda *models: next(figures))
    with pytest.raises(ToleranceError, match="--rounding nearest` stays closer"):
        merge(trained(), tmp_path / "a")
    with pytest.raises(ToleranceError, match="beyond float16, so use `--dtype bfloat16`"):
        merge(trained(), tmp_path / "b", dtype="float16")


def test_without_held_out_rows_training_rows_are_compared_and_it_is_said(trained, tmp_path, capsys):
    run = edited(trained(), tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    start, end = recipe.index("  eval:\n"), recipe.index("  format:")
    (run / "recipe.yaml").write_text(f"{recipe[:start]}  eval: null\n{recipe[end:]}")
    record = merge(run, tmp_path / "merged")
    assert record["rows_from"] == "data.train" and record["rows"] == 8 and "kl_mean" in record
    assert "compared on rows of data.train" in capsys.readouterr().err


def test_weights_that_are_no_numbers_leave_nothing_behind(trained, tmp_path, monkeypatch):
    def poisoned(folder, **named):
        recipe, text, adaptation = open_run(folder, **named)
        site = next(adapted(adaptation.model.hf))[1]
        with torch.no_grad():
            site.adapter.B[0, 0] = float("nan")
        return recipe, text, adaptation

    monkeypatch.setattr("lrft.api.merging.options.open_run", poisoned)
    with pytest.raises(NumericalError, match=r"q_proj\.weight: .*not finite.*nothing was written") as caught:
        merge(trained(), tmp_path / "merged")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_base_weight_beyond_float16_is_refused_by_name(trained, tmp_path):
    recipe, _, adaptation = open_run(RunFolder(trained()))
    dense = load_model(recipe.model)
    dense.hf.get_parameter("model.norm.weight").data[0] = 1e5
    with pytest.raises(
        NumericalError, match=r"model\.norm\.weight: its largest value 99840 is beyond float16"
    ):
        merge_into(dense, adaptation.model, onto="dequantized", dtype=torch.float16)


def test_feedback_without_training_rows_is_refused_before_anything_is_written(trained, tmp_path):
    run = edited(trained(), tmp_path / "run")
    path, rows = run / "recipe.yaml", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    path.write_text(path.read_text().replace(f"{DATA}/train.jsonl", str(rows)))
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        merge(run, tmp_path / "merged", rounding="feedback")
    assert not (tmp_path / "merged").exists()
    record = merge(run, tmp_path / "merged")  # nothing else needs them where there are held-out rows
    assert record["rows_from"] == "data.eval"
