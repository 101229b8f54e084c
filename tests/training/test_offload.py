"""A training whose weights, layer inputs and optimizer state lie on a disk is the training that it is without."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.build import offloading as build
from lrft.core import shelf
from lrft.files import pages
from lrft.files.failure import WriteError
from lrft.model import paged_activations, paged_weights
from lrft.recipe.load import load_recipe
from lrft.registry.errors import Interrupted, RecipeError
from lrft.training import paged_state
from tests.each import each
from tests.training.unbroken import cut_off, files_of, losses, stop_at

ALL = "offload={weights: disk, activations: disk, optimizer: disk}"
AGAIN = "model.activation_checkpointing=true"
FULL = ["trainable=full", "adapter=null", "init=null", "quantization=none"]
SHORT = [
    "train.max_steps=4",
    "train.save_every=2",
    "train.eval_every=4",
    "train.keep_last=9",
    "data.train.limit=20",
    "data.eval.limit=4",
]


@pytest.fixture
def nothing_is_small(monkeypatch):
    """A model for tests has no tensor of a page; here the smallest goes to the disk too, as soon as it is read."""
    monkeypatch.setattr("lrft.model.asked.SMALL", 0)
    for module in (shelf, paged_activations, paged_weights, paged_state):
        monkeypatch.setattr(module, "SMALL", 1)


@pytest.fixture
def seen(monkeypatch):
    """Every `Offloading` of the test, as it was when it was closed."""
    found: list[build.Offloading] = []
    close = build.Offloading.close

    def closed(self: build.Offloading) -> None:
        found.append(self)
        close(self)

    monkeypatch.setattr(build.Offloading, "close", closed)
    return found


def same(ours: Path, whole: Path) -> None:
    """Fail where the two runs differ by more than what a manifest says of the recipe."""
    assert losses(ours) == losses(whole)
    found, expected = files_of(ours), files_of(whole)
    different = {name for name in expected | found if expected.get(name) != found.get(name)}
    assert different <= {"step-4/manifest.json"} and len(found) >= 5
    if different:
        one, other = (json.loads(files["step-4/manifest.json"]) for files in (found, expected))
        assert {key for key in one if one[key] != other.get(key)} <= {"recipe", "sha256"}


KINDS = {
    "nf4": ["quantization=nf4", AGAIN],
    "none, unpacked": ["quantization=none", AGAIN, "train.packing=false"],
    "full": [*FULL, AGAIN, "model.dtype=bfloat16", "trainable.update=master"],
    "weights alone": ["adapter={method: dora, rank: 4}"],
    "restarts": ["restart={method: periodic, every: 2}", "adapter.dropout=0", AGAIN],
}
PARTS = {
    "full": "offload={activations: disk, optimizer: disk}",
    "weights alone": "offload={weights: disk}",
}
ALWAYS = ("nf4", "full")


@pytest.mark.parametrize(
    "kind", [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_loss_gradient_and_byte_is_that_of_the_run_without(
    recipe_file, tmp_path, nothing_is_small, seen, kind
):
    """Resumed in the middle, too, and by a run without, since where numbers lie may change while a run goes on."""
    settings, away = [*SHORT, *KINDS[kind]], PARTS.get(kind, ALL)
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    recipe = recipe_file()
    train(load_recipe(recipe, settings), whole)
    train(load_recipe(recipe, [*settings, away]), ours)
    same(ours, whole)
    (found,) = seen
    if found.weights is not None:
        assert found.weights.bytes > 14 * 4096 and found.weights.window.entered > 4 * 2 * 4
    if found.activations is not None:
        assert found.activations.written == found.activations.read >= 4 * 2
    if found.state is not None:
        assert len(found.state._slots) >= 2 * sum(map(len, found.state.blocks))
    on, back = cut_off(whole, 2, tmp_path / "on"), cut_off(ours, 2, tmp_path / "back")
    train(load_recipe(recipe, [*settings, away]), on, resume=True)
    train(load_recipe(recipe, settings), back, resume=True)
    same(on, whole)
    same(back, whole)


def test_a_merge_is_that_of_the_run_without_and_says_that_it_holds_the_model(
    recipe_file, tmp_path, short_answers, capsys
):
    settings = [*SHORT, "train.max_steps=1", "quantization=none", AGAIN, "export.tolerance=100"]
    for name, more in {"whole": [], "ours": [ALL]}.items():
        train(load_recipe(recipe_file(), [*settings, *more]), tmp_path / name)
        merge(tmp_path / name, tmp_path / f"{name}-merged")
    ours, whole = (
        (tmp_path / f"{name}-merged" / "model.safetensors").read_bytes() for name in ("ours", "whole")
    )
    assert ours == whole
    assert capsys.readouterr().err.count("offload: is of training; the whole model is held here") == 1


def test_frozen_weights_are_pages_of_the_file_and_train_as_such(recipe_file, tmp_path, monkeypatch):
    """Nothing is copied back: what a layer computes with is where the file is mapped."""
    held: list[set[str]] = []
    settle = paged_weights.PagedWeights.settle

    def settled(self: paged_weights.PagedWeights, model) -> None:
        settle(self, model)
        inside = [(slot._bytes.data_ptr(), slot._bytes.data_ptr() + slot.size) for _, slot in self._slots]
        buffers = {n: b for n, b in model.hf.named_buffers() if ".base." in n}
        buffers["embedding"] = model.hf.get_input_embeddings().weight
        held.append(
            {n for n, b in buffers.items() if not any(low <= b.data_ptr() < high for low, high in inside)}
        )
        assert len(buffers) > 14

    monkeypatch.setattr(paged_weights.PagedWeights, "settle", settled)
    train(load_recipe(recipe_file(), [*SHORT, "train.max_steps=1", "offload.weights=disk"]), tmp_path / "run")
    assert held == [set()]


def test_a_resident_block_goes_when_the_next_but_one_is_entered_and_the_next_is_brought_meanwhile(tmp_path):
    """Counted by the system: pages of files that this process has mapped and in memory."""
    block, file = 8 * 2**20, pages.PageFile(tmp_path)
    groups = [[shelf.Slot(file, block)] for _ in range(5)]
    for number, (slot,) in enumerate(groups):
        slot.tensor((block,), torch.uint8).fill_(number)
        slot.drop()
    window, before = paged_weights.Window(groups, []), mapped()
    for place, step in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, -1), (3, -1), (2, -1), (1, -1), (0, -1)]:
        window.enter(place, step)
        window.beside.finish()
        (slot,) = groups[place]
        assert int(slot.tensor((block,), torch.uint8).max()) == place
        blocks = 2 if 0 <= place + step < len(groups) else 1
        assert (mapped() - before) / block == pytest.approx(blocks, abs=0.05), (place, step)
    assert (window.entered, window.ready) == (10, 9)  # all but the first
    window.close()
    window.enter(3, 1)  # who computes after that, as for what is written at the end, reads for himself
    assert int(groups[3][0].tensor((block,), torch.uint8).min()) == 3
    file.close()


def mapped() -> int:
    """Bytes of files of offload that are mapped and in memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = ".offload." in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_inputs_of_layers_leave_memory_while_they_wait_and_are_written_in_order(tmp_path):
    file, size = pages.PageFile(tmp_path), 1024
    away = paged_activations.PagedActivations(file)
    inputs = [torch.full((size,), float(n), requires_grad=True) for n in range(6)]
    held = [away._put(tensor * 1) for tensor in inputs]
    away.beside.finish()
    assert all(one._tensor is None for one in held) and file.size == 6 * 4096
    for number in reversed(range(6)):
        assert torch.equal(away._take(held[number]), inputs[number].detach())
        assert number == 0 or held[number - 1]._coming is not None  # on its way while this layer computes
        held.pop()
    gc.collect()
    assert len(away._free) == 6
    again = away._put(torch.ones(size))
    assert file.size == 6 * 4096 and torch.equal(away._take(again), torch.ones(size))
    away.close()
    file.close()


def test_an_input_that_was_written_to_meanwhile_is_no_silent_other_number(tmp_path):
    file = pages.PageFile(tmp_path)
    tensor = torch.ones(2000)
    held = paged_activations._Held(tensor, shelf.Slot(file, tensor.nbytes))
    tensor.add_(1)
    with pytest.raises(AssertionError, match="written to after the layer had it"):
        held.write()
    file.close()


def test_nothing_is_left_where_a_run_ended_and_a_part_of_a_killed_one_is_swept(recipe_file, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "fast disk"
    elsewhere.mkdir()
    abandoned = elsewhere / ".offload.0123abcd.tmp"
    abandoned.write_bytes(b"of a process that was killed before its file had lost its name")
    train(
        load_recipe(recipe_file(), [*SHORT, "train.max_steps=1", ALL, AGAIN, f"offload.folder={elsewhere}"]),
        run,
    )
    assert list(elsewhere.iterdir()) == [] and not list(run.glob(".offload*"))


def test_a_signal_ends_it_after_the_step_and_leaves_no_file(recipe_file, tmp_path, monkeypatch, seen):
    settings, whole, ours = [*SHORT, ALL, AGAIN], tmp_path / "whole", tmp_path / "ours"
    recipe = recipe_file()
    train(load_recipe(recipe, settings), whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(load_recipe(recipe, settings), ours)
    assert not list(ours.glob(".offload*")) and seen[-1].weights.window.beside._pool._shutdown
    train(load_recipe(recipe, settings), ours, resume=True)
    same(ours, whole)


@pytest.mark.slow
def test_a_killed_process_leaves_no_file_and_no_room_taken(recipe_file, tmp_path):
    run = tmp_path / "run"
    words = [str(recipe_file()), "--out", str(run), ALL, AGAIN, "train.max_steps=10000"]
    process = subprocess.Popen([sys.executable, "-m", "lrft", "train", *words], stderr=subprocess.PIPE)
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert [link for link in links if ".offload." in link and link.endswith("(deleted)")]
    finally:
        process.kill()
        process.wait()
    assert not list(run.glob(".offload*"))


@each("part", ["weights", "activations", "optimizer"])
def test_a_full_disk_is_told_before_anything_is_loaded(part, tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrft.files.failure.free", lambda path: 4096)
        patch.setattr(build, "load_model", build.load_model)
        patch.setattr("lrft.build.adapt.load_model", lambda *_, **__: pytest.fail("it was loaded"))
        patch.setattr("lrft.build.adapt.open_model", lambda *_, **__: pytest.fail("it was opened"))
        with pytest.raises(
            WriteError, match=r"the file of offload: could not be written \(No space left"
        ) as told:
            train(load_recipe(tiny_recipe(folder), [f"offload.{part}=disk", AGAIN]), folder / "run")
    assert "give another offload.folder; nothing was trained" in str(told.value)
    assert not (folder / "run").exists()


def test_a_disk_that_is_full_after_all_is_told_when_the_room_is_taken(tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError, match="No space left on device"):
        pages.PageFile(tmp_path, 4096)
    with pytest.raises(WriteError, match="No space left on device"):
        pages.PageFile(tmp_path).claim(1)
    assert list(tmp_path.iterdir()) == []


REFUSED = [
    ("offload.weights=host", "offload.weights", "a CPU computes in the host's memory"),
    ("offload.activations=disk", "offload.activations", "write model.activation_checkpointing: true"),
    ("offload.folder=/tmp", "offload.folder", "nothing lies there"),
    (["offload.weights=disk", *FULL], "offload.weights", "none is frozen"),
    (["offload.weights=disk", "train.shard_base=true"], "offload.weights", "cut over processes"),
    (["offload.weights=disk", "model.experts=split"], "offload.weights", "one tensor in memory"),
    (
        ["offload.weights=disk", "model.compile=true", "train.packing=true"],
        "offload.weights",
        "compiled code",
    ),
    (["offload.weights=disk", "train.device=cuda"], "offload.weights", "is written for a CPU"),
    (["offload.optimizer=disk", "optimizer=lora_pro"], "offload.optimizer", "several parameters at once"),
    (
        ["offload.optimizer=disk", "optimizer.per_layer=true", "train.clip=null"],
        "offload.optimizer",
        "within the backward pass",
    ),
    (
        ["offload.optimizer=disk", *FULL, "trainable.update=stochastic"],
        "offload.optimizer",
        "draws for all parameters",
    ),
    (
        ["offload.activations=disk", AGAIN, "optimizer={method: mezo, lr: 1e-4}", "train.clip=null"],
        "offload.activations",
        "makes no backward pass",
    ),
]


@each(("overrides", "key", "message"), REFUSED)
def test_what_does_not_go_together_is_refused_by_the_recipe(overrides, key, message, tiny_recipe, tmp_path):
    given = [overrides] if isinstance(overrides, str) else overrides
    with pytest.raises(RecipeError) as told:
        load_recipe(tiny_recipe(tmp_path), given)
    assert any(problem.key == key and message in problem.message for problem in told.value.problems)


def test_several_processes_and_a_gpu_are_refused_before_anything_is_loaded(
    recipe_file, tmp_path, monkeypatch
):
    recipe = load_recipe(recipe_file(), ["offload.weights=disk", "train.device=auto"]).recipe
    monkeypatch.setattr(build, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    for device, processes, message in (("cpu", 2, "is of one process"), ("cuda", 1, "is written for a CPU")):
        with (
            pytest.raises(RecipeError, match=message),
            build.offloading(recipe, tmp_path, torch.device(device), processes),
        ):
            pass


def test_a_model_without_blocks_is_refused(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(paged_weights, "recomputable", lambda hf: [])
    with pytest.raises(RecipeError, match="has no blocks that come one after another"):
        train(load_recipe(recipe_file(), [*SHORT, "offload.weights=disk"]), tmp_path / "run")
