"""A run that was stopped and resumed is the run that was not: same losses, same bytes."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from lrft.api.training.train import train
from lrft.model.trained import trained_tensors
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import Interrupted, UsageError
from lrft.training import checkpoint
from tests.older_run import as_older
from tests.training.unbroken import COSINE, SIX_STEPS, goes_on_unbroken, losses, same, stop_at

ROOT = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
VARIANTS = [
    {"optimizer": "paged_adamw8bit"},
    {"adapter.method": "dora"},
    {"init.method": "pissa", "init.residual": "rewrite", "adapter.dropout": "0"},
    {"init.method": "pissa", "init.residual": "anchor", "adapter.dropout": "0"},
    {"train.packing": "false", "train.gradient_accumulation": "1"},
    {"model.dtype": "float32", "quantization": "none"},
    {"model.activation_checkpointing": "true", "quantization": "int8"},
    {"init": "gaussian", "quantization": "fp4", "train.epochs": "2", "~train.max_steps": None},
    {"trainable": "[norm.weight, embed_tokens.weight]"},
    {"trainable": "{weights: full, update: master}", "quantization": "none", "~adapter": None},
    {"trainable": "{weights: full, update: stochastic}", "quantization": "none", "~adapter": None},
]
PER_LAYER = ["optimizer.per_layer=true", "train.clip=null", "train.gradient_accumulation=1"]


BIASES = [
    {"quantization": "int8"},
    {"quantization": "none", "~adapter": None, "trainable.update": "stochastic"},
    {"trainable.update": "master", "restart": "{method: relora, every: 3}", "adapter.dropout": "0"},
]


def overrides_of(variant: dict) -> list[str]:
    return [key if value is None else f"{key}={value}" for key, value in variant.items()]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()))
def test_cut_off_and_resumed_is_unbroken(recipe_file, tmp_path, variant):
    loaded = load_recipe(recipe_file(), ["train.keep_last=9", *overrides_of(variant)])
    train(loaded, tmp_path / "whole", resume=False)
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")


def test_a_run_stopped_by_a_signal_before_a_score_is_due_is_unbroken(recipe_file, tmp_path, monkeypatch):
    resumes_unbroken(load_recipe(recipe_file()), tmp_path, monkeypatch, 4)


def test_stopped_twice_and_resumed_twice_is_unbroken(recipe_file, tmp_path, monkeypatch):
    resumes_unbroken(load_recipe(recipe_file()), tmp_path, monkeypatch, 2, 4)


@pytest.mark.parametrize("variant", BIASES, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()))
def test_biases_that_train_resume_unbroken(recipe_file, tmp_path, variant):
    overrides = ["trainable={weights: ['*.bias']}", "train.keep_last=9", *overrides_of(variant)]
    loaded = load_recipe(recipe_file(family="qwen2"), overrides)
    train(loaded, tmp_path / "whole", resume=False)
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")


@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS.names() if "per_parameter" in OPTIMIZERS.declared(n).provides]
)
def test_updates_in_the_backward_pass_resume_unbroken(on_tiny, tmp_path, name):
    path = SMOKE / f"{name}.yaml"
    loaded = load_recipe(path, [*on_tiny(path), *SIX_STEPS, COSINE, *PER_LAYER])
    train(loaded, tmp_path / "whole", resume=False)
    goes_on_unbroken(loaded, tmp_path / "whole", 3, tmp_path / "broken")


def resumes_unbroken(loaded, tmp_path, monkeypatch, *stops):
    """Stopped by a signal after each of these steps and resumed each time."""
    train(loaded, tmp_path / "whole", resume=False)
    for step in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted) as stopped:
                train(loaded, tmp_path / "broken", resume=step != stops[0])
            assert stopped.value.exit_code == 130
        assert (tmp_path / "broken" / "checkpoints" / f"step-{step}").is_dir()
    train(loaded, tmp_path / "broken", resume=True)
    same(tmp_path / "broken", tmp_path / "whole")


def test_sigterm_ends_in_143(recipe_file, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    assert stopped.value.exit_code == 143


def test_a_damaged_checkpoint_is_named_kept_and_skipped(recipe_file, tmp_path, monkeypatch, capsys):
    loaded = load_recipe(recipe_file())
    train(loaded, tmp_path / "whole", resume=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "run", resume=False)
    damaged = tmp_path / "run" / "checkpoints" / "step-6" / "adapter.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    train(loaded, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "step-6: adapter.safetensors is damaged" in said
    assert "resuming after step 4" in said or "resuming after step 3" in said
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_changed_recipe_is_refused_with_the_difference(recipe_file, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    with pytest.raises(UsageError, match=r"optimizer.lr: 0.003 -> 0.01"):
        train(load_recipe(recipe_file(), ["optimizer.lr=0.01"]), tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="add --resume"):
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)


def test_another_base_model_is_refused(recipe_file, tmp_path, monkeypatch, tiny):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "base"
    shutil.copytree(tiny(), copy)
    overrides = [f"model.name={copy}"]
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(load_recipe(recipe_file(), overrides), tmp_path / "run", resume=False)
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {k: v * 1.01 for k, v in tensors.items()}, copy / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UsageError, match="another base model"):
        train(load_recipe(recipe_file(), overrides), tmp_path / "run", resume=True)


def test_a_second_training_in_the_same_folder_is_kept_out(recipe_file, tmp_path):
    from lrft.training.folder import RunFolder

    holder = RunFolder(tmp_path / "run")
    holder.lock()
    with pytest.raises(UsageError, match="another process is training here"):
        train(load_recipe(recipe_file()), tmp_path / "run", resume=True)
    holder.unlock()
    assert train(load_recipe(recipe_file()), tmp_path / "run", resume=True)["step"] == 8


def test_changed_rows_are_refused(recipe_file, tmp_path, monkeypatch):
    rows = (ROOT / "train.jsonl").read_text().splitlines()
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows[:40]))
    overrides = [f"data.train={data}"]
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(load_recipe(recipe_file(), overrides), tmp_path / "run", resume=False)
    data.write_text("\n".join(rows[1:41]))
    with pytest.raises(UsageError, match=r"the rows of data\.train \(.*rows\.jsonl: \w+ -> \w+\) changed"):
        train(load_recipe(recipe_file(), overrides), tmp_path / "run", resume=True)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_rows_that_were_packed_in_another_order_are_refused(recipe_file, tmp_path, monkeypatch, packing):
    """As versions did that recorded no order; padded rows do not depend on it."""
    loaded = load_recipe(recipe_file(), [f"train.packing={packing}"])
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train(loaded, tmp_path / "run", resume=False)
    path = as_older(tmp_path / "run") / "run.json"
    record = json.loads(path.read_text())
    assert record.pop("packing_order") == "longest first"
    path.write_text(json.dumps(record))
    if packing == "false":
        assert train(loaded, tmp_path / "run", resume=True)["step"] == 8
        return
    with pytest.raises(UsageError, match=r"the order that lrft packs rows in .another version. changed"):
        train(loaded, tmp_path / "run", resume=True)


def test_a_checkpoint_can_be_named_instead_of_the_run(recipe_file, tmp_path):
    from lrft.api.opening.open_run import open_run
    from lrft.training.folder import find

    train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    chosen = tmp_path / "run" / "checkpoints" / "step-6"
    _, _, adaptation = open_run(find(chosen))
    saved = checkpoint.read_adapter(chosen)
    assert all(torch.equal(saved[k], v) for k, v in trained_tensors(adaptation.model).items())
    newest = checkpoint.read_adapter(tmp_path / "run" / "checkpoints" / "step-8")
    assert not all(torch.equal(saved[k], newest[k]) for k in saved)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with lrft imported, so that a kill meets a training and not its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lrft.api.training.train", "transformers.models.llama.modeling_llama", "bitsandbytes"]
    )
    return context


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_any_instant_leaves_the_unbroken_result(
    recipe_file, tmp_path, processes, monkeypatch, kills
):
    """Killed at random instants, each time resumed with the same call, without anyone tidying up."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = str(recipe_file())

    def started(name):
        options = {"resume": True, "overrides": ["train.save_every=2"]}
        process = processes.Process(target=train, args=(recipe, tmp_path / name), kwargs=options)
        process.start()
        return process

    def finished(name):
        process = started(name)
        process.join(200)
        assert process.exitcode == 0

    finished("warm")  # the server of processes has started and every file has been read once
    began = time.monotonic()
    finished("whole")
    seconds = time.monotonic() - began
    draw = random.Random(3)  # of the first two, both meet a training
    killed = 0
    for _ in range(kills):
        process = started("broken")
        time.sleep(draw.uniform(0.1, 1.0) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    finished("broken")
    same(tmp_path / "broken", tmp_path / "whole")
