"""A model whose files hold bfloat16, so that it has the same values whether it computes in that or in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def in_bfloat16(source: Path, folder: Path) -> Path:
    """The model of a folder in another one."""
    shutil.copytree(source, folder)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder)
    return folder
