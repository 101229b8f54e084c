"""R11, the part of files: what is no file, no record or no model is refused by name, in bounded memory and time."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.files.json import MAX_DEPTH, read_object, with_sum
from lrft.files.model_folder import check_model_folder, read_adapter_config
from lrft.files.read import read_bytes
from lrft.files.records import RunRecord
from lrft.files.sums import folder_fault, folder_manifest
from lrft.files.tensors import check_tensor_file, read_header
from lrft.model.described import describe
from lrft.model.files import resolve
from lrft.registry.errors import DamagedFile, LrftError, MissingFile, RecipeError

NO_RECORDS = {
    b"": "is empty",
    b" \n": "is empty",
    b"null": "holds null, where an object is meant",
    b"[]": "holds a list, where an object is meant",
    b"7": "holds a number, where an object is meant",
    b'"x"': "holds a text, where an object is meant",
    b'{"step": 1, "fi': "is torn: it ends in the middle",
    b'{"step": ': "is torn: it ends in the middle",
    b'{"a" 1}': "is no JSON",
    b"\x00" * 40: "is no JSON",
    b'{"a": "\xff"}': "byte 0xff at place 7 is no UTF-8 text",
    b'{"a": "\\ud800"}': "holds half of a character pair",
    b'{"a": ' + b"9" * 5000 + b"}": "is no JSON (Exceeds the limit",
    b'{"a":' * 100_000: "levels deep",
    b'{"a":' * (MAX_DEPTH + 1)
    + b"1"
    + b"}" * (MAX_DEPTH + 1): f"is nested more than {MAX_DEPTH} levels deep",
    b'{"date": 3}': "its key 'date' is wrong (input should be a valid string)",
    b'{"processes": "2"}': "its key 'processes' is wrong (input should be a valid integer)",
    b'{"processes": true}': "its key 'processes' is wrong (input should be a valid integer)",
    b'{"data": {"eval": []}}': "its key 'data.eval' is wrong",
}


@pytest.mark.parametrize("content", NO_RECORDS, ids=lambda content: content[:12].decode(errors="replace"))
def test_what_is_no_record_is_one_sentence(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as told:
        read_object(path, RunRecord)
    text = str(told.value)
    assert (
        text.startswith(f"{path}: ")
        and NO_RECORDS[content] in text
        and text.endswith("; restore it from a copy")
    )
    assert "\n" not in text and len(text) < 400


def test_a_record_of_a_later_version_is_read(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"seed": 3, "later": {"deep": [1, 2.5, null, "é"]}}')
    assert read_object(path, RunRecord)["later"]["deep"] == [1, 2.5, None, "é"]


def special(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "out":
        outside = path.parent.parent / f"outside-{path.name}"
        outside.write_text("{}")
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to("nothing")
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**36)


SPECIAL = {
    "pipe": "is a pipe, not a file",
    "device": "is a link out of|is a device, not a file",
    "loop": "cannot be read .Too many levels|is missing",
    "folder": "is a folder, not a file",
    "out": "is a link out of .*, which is not followed; put the file itself there",
    "dangling": "is missing",
    "huge": "has 68,719,476,736 bytes, where at most",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_of_the_folder_is_not_opened(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    special(folder / "run.json", kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedFile, match=SPECIAL[kind]):
        read_bytes(folder / "run.json", within=folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_link_inside_the_folder_is_followed_and_a_name_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").symlink_to("a.json")
    assert read_bytes(tmp_path / "b.json", within=tmp_path) == b"{}"
    for name in ("a\0b", "x" * 300, "a.json/b"):
        with pytest.raises(DamagedFile):
            read_bytes(tmp_path / name)
    with pytest.raises(MissingFile):
        read_bytes(tmp_path / "none.json", within=tmp_path)


@pytest.fixture
def model(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny(), tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "out", "huge"])
def test_a_model_folder_with_what_is_no_file_of_it_is_refused(model, name, kind):
    special(model / name, kind)
    for look in (lambda: resolve(str(model), None, "float32"), lambda: describe(str(model))):
        with pytest.raises(RecipeError, match=rf"{name}"):
            look()


def test_a_header_longer_than_a_header_is_refused_before_it_is_read(model):
    path = model / "model.safetensors"
    for length, what in (
        (100 * 2**20, "has a header of 104,857,600 bytes"),
        (2**60, "is torn: its header would"),
    ):
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(200 * 2**20)
        for look in (check_tensor_file, read_header):
            with pytest.raises(DamagedFile, match=what):
                look(path)
    path.write_bytes(b"123")
    with pytest.raises(DamagedFile, match="is torn"):
        check_tensor_file(path)


def test_an_index_that_names_files_elsewhere_is_refused(model):
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(DamagedFile, match="which is no file of the folder"):
        check_model_folder(model)
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    with pytest.raises(DamagedFile, match=r"its key 'weight_map.a' is wrong"):
        check_model_folder(model)


def test_a_snapshot_of_the_hubs_cache_is_a_model_folder(model, tmp_path):
    """Which is made of links to blobs; one that leads out of what is kept of the model is refused all the same."""
    cache = tmp_path / "models--some--model"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in model.iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    check_model_folder(snapshot)
    assert resolve(str(snapshot), None, "float32") == (str(snapshot), {})
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(model / "config.json")
    with pytest.raises(DamagedFile, match="is a link out of"):
        check_model_folder(snapshot)


def test_an_adapter_folder_is_what_its_manifest_says(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (tmp_path / "README.md").write_text("read me")
    assert read_adapter_config(tmp_path)["r"] == 4  # as PEFT writes it, without a manifest
    (tmp_path / "manifest.json").write_bytes(folder_manifest(tmp_path))
    assert folder_fault(tmp_path) == ""
    (tmp_path / "README.md").write_text("read no")
    with pytest.raises(LrftError, match=r"README.md is damaged \(its sha256"):
        read_adapter_config(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**with_sum({"format": 2, "files": {}}), "format": 3}))
    assert folder_fault(tmp_path) == "manifest.json is damaged (its own sha256 is another)"
