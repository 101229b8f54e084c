"""A run that was stopped and resumed is the run that was not: same losses, same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrft.api.train import train
from lrft.model.trained import trained_tensors
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import Interrupted, UsageError
from lrft.training import checkpoint, checkpoint_folder
from lrft.training.gradient_check import GradientCheck

ROOT = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"

SMOKE = sorted((Path(__file__).parents[2] / "recipes" / "smoke").glob("[!_]*.yaml"))
LONGER = [
    "train.max_steps=8",
    "train.batch_size=2",
    "train.max_length=200",
    "train.save_every=3",
    "train.eval_every=4",
    "train.device=cpu",
    "data.train.limit=60",
    "data.eval.limit=6",
    "schedule={method: cosine, warmup_ratio: 0.1}",
]
VARIANTS = [
    {},
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


def losses(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "memory_bytes")
    return [tuple((k, str(v)) for k, v in line.items() if k not in timed) for line in lines]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that must be byte for byte the same: the adapter folder and the last checkpoint."""
    last = max((folder / "checkpoints").glob("step-*"), key=checkpoint_folder.step_of)
    chosen = [*sorted((folder / "adapter").glob("adapter*")), *sorted(last.iterdir())]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in chosen}


def stop_at(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    """A real signal, delivered when the given step's parameters have just moved."""
    after_step = GradientCheck.after_step

    def moved(self, run):
        after_step(self, run)
        if run.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(GradientCheck, "after_step", moved)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()))
def test_stopped_and_resumed_is_unbroken(recipe_file, tmp_path, monkeypatch, variant):
    resumes_unbroken(load_recipe(recipe_file(), overrides_of(variant)), tmp_path, monkeypatch)


@pytest.mark.parametrize("variant", BIASES, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()))
def test_biases_that_train_resume_unbroken(recipe_file, tmp_path, monkeypatch, variant):
    overrides = ["trainable={weights: ['*.bias']}", *overrides_of(variant)]
    resumes_unbroken(load_recipe(recipe_file(family="qwen2"), overrides), tmp_path, monkeypatch)


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_every_method_resumes_unbroken(on_tiny, tmp_path, monkeypatch, path):
    plain = load_recipe(path, ["model.name=x/y"]).recipe
    accumulation = [] if plain.optimizer.per_layer else ["train.gradient_accumulation=2"]
    loaded = load_recipe(path, [*on_tiny(path), *LONGER, *accumulation])
    resumes_unbroken(loaded, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS.names() if "per_parameter" in OPTIMIZERS.declared(n).provides]
)
def test_updates_in_the_backward_pass_resume_unbroken(on_tiny, tmp_path, monkeypatch, name):
    path = next(p for p in SMOKE if p.stem == name)
    loaded = load_recipe(path, [*on_tiny(path), *LONGER, *PER_LAYER])
    resumes_unbroken(loaded, tmp_path, monkeypatch)


def resumes_unbroken(loaded, tmp_path, monkeypatch):
    train(loaded, tmp_path / "whole", resume=False)
    for step in (2, 4):  # a score is due after step 4, and the signal comes before it
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted) as stopped:
                train(loaded, tmp_path / "broken", resume=step > 2)
            assert stopped.value.exit_code == 130
        assert (tmp_path / "broken" / "checkpoints" / f"step-{step}").is_dir()
    train(loaded, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    broken, whole = files_of(tmp_path / "broken"), files_of(tmp_path / "whole")
    assert [name for name in whole if whole[name] != broken.get(name)] == []


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
    with pytest.raises(UsageError, match=r"the rows of data\.train or data.eval changed"):
        train(load_recipe(recipe_file(), overrides), tmp_path / "run", resume=True)


def test_a_checkpoint_can_be_named_instead_of_the_run(recipe_file, tmp_path):
    from lrft.api.open_run import open_run
    from lrft.training.folder import find

    train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    chosen = tmp_path / "run" / "checkpoints" / "step-6"
    _, _, adaptation = open_run(find(chosen))
    saved = checkpoint.read_adapter(chosen)
    assert all(torch.equal(saved[k], v) for k, v in trained_tensors(adaptation.model).items())
    newest = checkpoint.read_adapter(tmp_path / "run" / "checkpoints" / "step-8")
    assert not all(torch.equal(saved[k], newest[k]) for k in saved)


def start(recipe: Path, out: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "lrft",
        "train",
        str(recipe),
        "--out",
        str(out),
        "--resume",
        "train.save_every=2",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_any_instant_leaves_the_unbroken_result(recipe_file, tmp_path, kills):
    """Killed at random instants, each time resumed with the same command, without anyone tidying up."""
    recipe = recipe_file()
    began = time.monotonic()
    assert start(recipe, tmp_path / "whole").wait(timeout=200) == 0
    seconds = time.monotonic() - began
    draw = random.Random(kills)
    for _ in range(kills):
        process = start(recipe, tmp_path / "broken")
        time.sleep(draw.uniform(0.4, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(recipe, tmp_path / "broken").wait(timeout=200) == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
