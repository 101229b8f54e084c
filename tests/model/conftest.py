"""A model folder that somebody changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def altered(tiny, tmp_path):
    """`altered(edit, **config)` -> folder of the tiny Llama with its tensors edited and keys of its config set."""

    def make(edit=lambda tensors: None, tied=True, **config) -> Path:
        folder = shutil.copytree(tiny("llama", tied=tied), tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, **config}))
        return folder

    return make
