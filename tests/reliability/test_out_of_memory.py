"""R13 without a limit: what a training that runs out of memory leaves and says, and what is known of limits."""

from __future__ import annotations

import math
import resource

import pytest

from lrft.api.planning.fit import changes, forecast, sentence
from lrft.api.training import memory
from lrft.api.training.train import train
from lrft.build import callbacks, recomputing
from lrft.core.callback import Callback
from lrft.files import read
from lrft.registry.errors import OutOfMemory
from lrft.training import checkpoint_folder
from tests.reliability.outcome import tiny
from tests.reliability.struck import scratch_in
from tests.training.unbroken import files_of, losses


class Full(Callback):
    """Finds no memory for the backward pass of a step."""

    def after_backward(self, run):
        if run.step + 1 == 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")


def test_what_was_saved_stays_and_the_same_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    recipe, whole, run = tiny(tmp_path, ["train.save_every=1"]), tmp_path / "whole", tmp_path / "run"
    train(recipe, whole)
    original = callbacks._timed_methods
    monkeypatch.setattr(callbacks, "_timed_methods", lambda recipe: [*original(recipe), Full()])
    with pytest.raises(OutOfMemory, match=r"^out of memory: training takes about .*; train.batch_size=1 "):
        train(recipe, run)
    steps = checkpoint_folder.steps_in(run / "checkpoints")
    assert max(map(checkpoint_folder.step_of, steps)) == 2
    assert [checkpoint_folder.fault(step) for step in steps] == ["", ""] and scratch_in(run) == []
    monkeypatch.setattr(callbacks, "_timed_methods", original)
    train(recipe, run, resume=True)
    assert files_of(run) == files_of(whole) and losses(run) == losses(whole)


def test_where_no_memory_is_left_to_plan_with_the_edits_are_listed(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(memory, "forecast", full)
    text = memory.advice(tiny(tmp_path).recipe)
    assert text.startswith("in the order that costs least: train.batch_size=1 ")


@pytest.mark.slow
def test_an_edit_is_advised_with_room_to_spare(tmp_path):
    recipe = tiny(tmp_path, ["train.batch_size=64", "train.max_length=512"]).recipe
    where = {"kind": "cpu", "bytes": 2**40, "source": "a test"}
    found, _ = forecast(recipe, where)
    halved = changes(recipe, {**where, "bytes": found.train["total"] - 1}, 1)[0]
    just = {**where, "bytes": halved["total"]}
    assert " ".join(halved["overrides"]) in sentence(recipe, just, found)
    less = sentence(recipe, just, found, 0.9)
    assert " ".join(halved["overrides"]) not in less
    assert float(less.partition("fits with ")[2].split()[0]) <= 0.9 * just["bytes"] / 2**30


def test_a_limit_of_the_shell_is_memory_that_is_not_there(monkeypatch):
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(recomputing.resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert recomputing._unused_of_limits() == math.inf
    limits[resource.RLIMIT_AS] = 2**50
    assert 2**49 < recomputing._unused_of_limits() < 2**50
    limits[resource.RLIMIT_DATA] = 1
    assert recomputing.free_bytes("cpu") == 0


def test_a_small_file_takes_little_memory_to_read_and_one_that_grows_is_read_to_its_end(tmp_path):
    asked = []

    class File:
        def __init__(self, file):
            self.file, self.fileno, self.seek = file, file.fileno, file.seek

        def read(self, size):
            asked.append(size)
            if len(asked) == 1:
                with path.open("ab") as more:
                    more.write(b"def")
            return self.file.read(size)

    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with path.open("rb") as file:
        assert read.content_of(File(file), path, 2**30) == b"abcdef"
    assert asked[0] == 4
