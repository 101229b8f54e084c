"""Which hub model a base is: known from a path, a config, a card or a GGUF file, or not at all."""

from __future__ import annotations

import json

import pytest

from lrft.model.origin import hub_id, public_name


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
    "said", ["/home/someone/model", "./out/model", "out/checkpoint-500", "model", "", None, 3, "a/b/c"]
)
def test_what_is_no_hub_id_is_not_taken_for_one(tmp_path, said):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": said}))
    assert hub_id(str(tmp_path)) is None
    assert public_name(str(tmp_path)) == tmp_path.name


def test_a_config_tells_the_id(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "owner/model"}))
    assert hub_id(str(tmp_path)) == "owner/model"


@pytest.mark.parametrize("written", ["base_model: owner/model", "base_model:\n- owner/model"])
def test_a_card_tells_the_id(tmp_path, written):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{written}\n---\n# Title\n---\n")
    assert hub_id(str(tmp_path)) == "owner/model"


@pytest.mark.parametrize(
    "text", ["", "# Title", "---\n: [\n---\n", "---\nbase_model: [a/b, c/d]\n---\n", "---\n- a\n---\n"]
)
def test_a_card_that_does_not_tell_is_no_obstacle(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert hub_id(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("general.source.repo_url", "https://huggingface.co/owner/model", "owner/model"),
        ("general.base_model.0.repo_url", "https://huggingface.co/owner/model/tree/main", "owner/model"),
        ("general.source.url", "https://github.com/owner/model", None),
    ],
)
def test_a_gguf_file_tells_the_id(tmp_path, key, value, found):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert hub_id(str(tmp_path / "model.gguf")) == found
    assert public_name(str(tmp_path / "model.gguf")) == (found or "model.gguf")
