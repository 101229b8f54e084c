"""Which hub model a base is: known from a path, a config, a card or a GGUF file, or not at all."""

from __future__ import annotations

import json

import pytest

from lrft.model.origin import SOURCES, _in_gguf, hub_id, loadable_name, public_name
from tests.tiny_gguf import write_out


def test_a_hub_id_is_itself():
    assert hub_id("owner/model") == "owner/model"
    assert hub_id("gpt2") == "gpt2"


def test_a_folder_of_the_hub_cache_tells_the_id_and_so_does_a_link_to_it(tmp_path):
    folder = tmp_path / "models--owner--a-model.v2" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert hub_id(str(folder)) == hub_id(str(link)) == "owner/a-model.v2"


@pytest.mark.parametrize(
    "said", ["/models/base", "./out/model", "out/checkpoint-500", "model", "", None, 3, "a/b/c"]
)
def test_what_is_no_hub_id_is_not_taken_for_one(tmp_path, said):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": said}))
    assert hub_id(str(tmp_path)) is None
    assert public_name(str(tmp_path)) == tmp_path.name


def test_a_config_tells_the_id(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "owner/model"}))
    assert hub_id(str(tmp_path)) == "owner/model"


def test_what_a_card_says_a_model_was_made_from_is_another_model(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: owner/model\n---\n")
    assert hub_id(str(tmp_path)) is None


def test_an_adapter_names_what_loads_its_weights(tmp_path):
    cached = tmp_path / "models--owner--model" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert loadable_name(str(cached)) == "owner/model"
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "config.json").write_text(json.dumps({"_name_or_path": "owner/model"}))
    assert loadable_name(str(changed)) == str(changed)
    assert loadable_name("owner/model") == "owner/model"


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("general.source.repo_url", "https://huggingface.co/owner/model", "owner/model"),
        ("general.source.url", "https://huggingface.co/owner/model/tree/main", "owner/model"),
        ("general.base_model.0.repo_url", "https://huggingface.co/owner/model", None),
        ("general.source.url", "https://github.com/owner/model", None),
    ],
)
def test_a_gguf_file_tells_the_id(tmp_path, key, value, found):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_string(key, value)
    write_out(writer)
    assert hub_id(str(tmp_path / "model.gguf")) == found
    assert public_name(str(tmp_path / "model.gguf")) == (found or "model.gguf")


def test_what_a_gguf_file_tells_is_read_once_and_a_damaged_note_again(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"any")
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "gguf").mkdir(parents=True)
    read = []
    fields = {SOURCES[0]: "https://huggingface.co/owner/model"}
    monkeypatch.setattr("lrft.model.gguf.fields_of", lambda path: read.append(path) or fields)
    for times in (1, 1):
        _in_gguf.cache_clear()
        assert loadable_name(str(path)) == "owner/model"
        assert len(read) == times
    (note,) = (tmp_path / "cache" / "gguf").iterdir()
    note.write_text("{torn")
    _in_gguf.cache_clear()
    assert loadable_name(str(path)) == "owner/model"
    assert len(read) == 2
    assert json.loads(note.read_text()) == {"repository": "owner/model"}
