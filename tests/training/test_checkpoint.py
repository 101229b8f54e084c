"""Checkpoints: whole or not at all, every damage seen, nothing lost on a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from lrft.core.callback import Callback
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.registry.errors import DamagedFile, LrftError
from lrft.training import checkpoint, checkpoint_folder, run_manifest
from lrft.training.fitting import Expected
from lrft.training.flatten import flatten, unflatten
from lrft.training.folder import RunFolder
from lrft.training.opened import OpenCheckpoint
from tests.same_state import same

FILES = {
    "adapter.safetensors": save({"A": torch.rand(1231)}),
    "optimizer.safetensors": save({"exp_avg": torch.rand(2231)}),
    "state.json": b'{"step": 1}',
}


def write(folder: Path, step: int, files=FILES) -> Path:
    checkpoint_folder.write_folder(
        folder / f"step-{step}", files, {"format": 1, "step": step, "recipe": "r", "base": "b"}
    )
    return folder / f"step-{step}"


def test_a_whole_folder_verifies(tmp_path):
    assert checkpoint_folder.fault(write(tmp_path, 1)) == ""


@pytest.mark.parametrize("kind", ["flip", "truncate", "zero tail", "missing", "swapped"])
@pytest.mark.parametrize("seed", range(20))
def test_every_damage_is_seen_and_the_one_before_is_used(tmp_path, kind, seed):
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    draw = random.Random(seed)
    victim = bad / draw.choice([*FILES, checkpoint_folder.MANIFEST])
    content = bytearray(victim.read_bytes())
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        content = content[: draw.randrange(len(content))]
    elif kind == "zero tail":
        cut = draw.randrange(len(content) - 1)
        content = content[:cut] + bytes(len(content) - cut)
    elif kind == "swapped":
        content = bytearray((bad / draw.choice(sorted(set(FILES) - {victim.name}))).read_bytes())
    victim.unlink() if kind == "missing" else victim.write_bytes(content)
    said = []
    assert checkpoint_folder.newest(tmp_path, said.append) == good
    assert said[0].startswith("step-2: ")
    assert bad.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_failure_at_any_call_leaves_the_old_checkpoint(tmp_path, monkeypatch, number):
    """Every write, fsync and rename of a save fails once, in turn."""
    write(tmp_path, 1)
    calls = 0
    while True:
        count = 0

        def fail_at(real, wanted=calls):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == wanted + 1:
                    raise OSError(number, os.strerror(number))
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_at(os.fsync))
            patch.setattr(os, "open", fail_at(os.open))
            patch.setattr(os, "rename", fail_at(os.rename))
            patch.setattr(os, "mkdir", fail_at(os.mkdir))
            try:
                write(tmp_path, 2)
            except LrftError as error:
                assert os.strerror(number) in str(error) and "--resume" in str(error)
            else:
                break
        assert checkpoint_folder.fault(tmp_path / "step-1") == ""
        assert checkpoint_folder.newest(tmp_path, lambda line: None) is not None
        shutil.rmtree(
            tmp_path / "step-2", ignore_errors=True
        )  # renamed before a last sync failed: whole, so fine
        calls += 1
    assert calls >= 8


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(LrftError, match=r"14,\d{3} bytes are needed, 10 are free"):
        write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]


def test_pruning_keeps_the_newest_and_the_best_and_waits_for_a_good_one(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step)
    (tmp_path / "step-5" / "state.json").write_bytes(b"damaged")
    checkpoint_folder.prune(tmp_path, 2, "step-2")
    assert len(checkpoint_folder.steps_in(tmp_path)) == 5
    write(tmp_path, 6)
    checkpoint_folder.prune(tmp_path, 2, "step-2")
    assert sorted(p.name for p in checkpoint_folder.steps_in(tmp_path)) == ["step-2", "step-5", "step-6"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    for path in write(tmp_path, 1).iterdir():
        assert path.suffix in (".safetensors", ".json")


def test_nested_state_survives_json():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)}, 1: {}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}],
        "empty": [],
    }
    tensors, values = flatten(state)
    back = unflatten(tensors, json.loads(json.dumps(values)))
    assert same(state, back)
    assert back["groups"][0]["betas"] == (0.9, 0.999)
    assert list(back["state"]) == [0, 1]


def test_what_cannot_be_kept_is_refused_by_path():
    with pytest.raises(TypeError, match=r"a\.b\.0: a set cannot be kept"):
        flatten({"a": {"b": [{1, 2}]}})


class Keeping(Callback):
    """Keeps one number of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict:
        return {"number": self.number}

    def load_state_dict(self, state: dict) -> None:
        self.number = state["number"]


def test_two_callbacks_of_one_class_each_get_their_own_state_back(tmp_path):
    def run_with(*numbers):
        parameter = nn.Parameter(torch.zeros(2))
        infos = [ParamInfo("w", parameter, "matrix", "")]
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        return Run(nn.Module(), infos, optimizer, schedule, 4, callbacks=[Keeping(n) for n in numbers])

    identity = checkpoint.Identity("recipe", "base")
    folder = checkpoint.save_checkpoint(run_with(1, 2, 3), {}, tmp_path, identity, {})
    resumed = run_with(0, 0, 0)
    checkpoint.restore(resumed, OpenCheckpoint(folder), Expected({}, {}))
    assert [callback.number for callback in resumed.callbacks] == [1, 2, 3]


@pytest.mark.parametrize("call", range(6))
def test_a_kill_between_the_records_and_their_sums_leaves_a_run_that_is_believed(tmp_path, monkeypatch, call):
    """At whichever of the writes: old files and new ones are known until all are new."""
    folder = RunFolder(tmp_path / "run")
    folder.write_known({"plan.json": {}, "run.json": {"seed": 1}, "recipe.yaml": "seed: 1\n"})
    real, calls = RunFolder.write, []

    def write(self, name, *arguments, **named):
        calls.append(name)
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        real(self, name, *arguments, **named)

    monkeypatch.setattr(RunFolder, "write", write)
    with contextlib.suppress(KeyboardInterrupt):
        folder.write_known({"plan.json": {}, "run.json": {"seed": 2}, "recipe.yaml": "seed: 2\n"})
    assert folder.read_whole("run.json")["seed"] in (1, 2)
    assert run_manifest.read_checked(folder.path, "recipe.yaml") in (b"seed: 1\n", b"seed: 2\n")
    (folder.path / "run.json").write_text('{"seed": 3}')
    with pytest.raises(DamagedFile, match=r"run.json: is not what lrft wrote"):
        folder.read_whole("run.json")
