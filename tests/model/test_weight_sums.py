"""The sums of a base: of every value, the same however it is read, and kept only for files that stand as they did."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from lrft.model import asked, known_sums
from lrft.model.load import load_model, open_model
from lrft.model.weight_sums import DIGITS, WeightSums
from lrft.recipe.sections import ModelSection


def section_of(folder, **keys) -> ModelSection:
    return ModelSection(name=str(folder), **{"dtype": "float32", **keys})


def sums_of(folder, **keys) -> WeightSums:
    found = load_model(section_of(folder, **keys), sums=True, seed=7).weight_sums
    assert found is not None
    return found


@pytest.fixture
def base(tiny, tmp_path):
    return shutil.copytree(tiny(), tmp_path / "base")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Small models are kept too, however recently they were written."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_sums, "WORTH", 0)
    monkeypatch.setattr(known_sums, "SETTLED", 0)
    return tmp_path / "cache" / "sums"


def no_hashing(monkeypatch) -> None:
    def sum_tensor(name, tensor):
        raise AssertionError(f"{name} was hashed")

    monkeypatch.setattr(known_sums, "sum_tensor", sum_tensor)


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("llama", True),
        ("gpt2", True),
        pytest.param("llama", False, marks=pytest.mark.slow),
        pytest.param("bamba", False, marks=pytest.mark.slow),
    ],
)
def test_read_one_by_one_they_are_those_of_the_whole(tiny, monkeypatch, family, tied):
    folder = tiny(family, tied=tied)
    whole = sums_of(folder)
    monkeypatch.setattr(asked, "SMALL", 0)
    model = open_model(section_of(folder), sums=True)
    assert model.unread is not None and model.unread.names
    model.unread.finish()
    assert model.unread.sums == whole
    assert model.unread.sums.whole == whole.whole


def test_shards_and_their_names_are_no_part_of_them(base):
    before = sums_of(base)
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    files = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({n: tensors[n] for n in names if files[n] == file}, base / file, {"format": "pt"})
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert sums_of(base) == before


def test_one_value_changes_one_tensor(base):
    before = sums_of(base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][5] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    now = sums_of(base)
    assert now.whole != before.whole
    assert now.changed(before.digits) == ["model.norm.weight"]
    assert now.changed(before.digits[DIGITS:]) == []  # of another model


def test_what_is_rounded_away_changes_nothing(base):
    before = sums_of(base, dtype="bfloat16")
    tensors = load_file(base / "model.safetensors")
    save_file(
        {k: v.bfloat16().float() for k, v in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    assert sums_of(base, dtype="bfloat16") == before


def test_drawn_weights_have_sums_too(base):
    drawn = sums_of(base, weights="random")
    assert drawn != sums_of(base) and drawn == sums_of(base, weights="random")


def test_unchanged_files_are_hashed_once(base, cache, monkeypatch):
    first = sums_of(base)
    assert len(list(cache.iterdir())) == 1
    no_hashing(monkeypatch)
    assert sums_of(base) == first
    with pytest.raises(AssertionError, match="was hashed"):
        sums_of(base, dtype="bfloat16")


def test_a_change_that_keeps_size_and_time_is_hashed_again(base, cache):
    first = sums_of(base)
    shard = base / "model.safetensors"
    stood = shard.stat()
    with shard.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(shard, ns=(stood.st_atime_ns, stood.st_mtime_ns))
    assert shard.stat().st_size == stood.st_size and shard.stat().st_mtime_ns == stood.st_mtime_ns
    assert sums_of(base).whole != first.whole


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff", b'{"by": 1}', b"null", b"[" * 100_000])
def test_a_damaged_entry_is_not_believed(base, cache, damage):
    first = sums_of(base)
    (entry,) = cache.iterdir()
    entry.write_bytes(damage)
    assert sums_of(base) == first
    assert json.loads(entry.read_text())["whole"] == first.whole


def test_an_entry_whose_sums_are_not_its_own_is_not_believed(base, cache):
    first = sums_of(base)
    (entry,) = cache.iterdir()
    held = json.loads(entry.read_text())
    held["each"]["model.norm.weight"] = "0" * 64
    entry.write_text(json.dumps(held))
    assert sums_of(base) == first


def test_files_that_changed_just_now_are_not_kept(base, cache, monkeypatch):
    monkeypatch.setattr(known_sums, "SETTLED", 10**12)
    sums_of(base)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_only_the_hashing(base, cache):
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    first = sums_of(base)
    assert sums_of(base) == first
