"""A random Llama of a few wide layers in several files: large enough for memory to be seen, small enough to be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch


def dense_bytes(width: int, layers: int) -> int:
    """Of its linear layers, in bfloat16; three times as wide within."""
    return 2 * layers * 13 * width * width


def write_wide_llama(folder: Path, width: int, layers: int, positions: int, files: int, room: int) -> None:
    """Write it, in about `files` files; skip the test where `room` times its bytes have no place on the disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dense = dense_bytes(width, layers)
    if shutil.disk_usage(folder.parent).free < room * dense:
        pytest.skip(f"needs {room * dense >> 30} GiB of disk")
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=600,
        max_position_embeddings=positions,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        hf = LlamaForCausalLM(config)
    hf = hf.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in hf.parameters():
        parameter.data.normal_(std=0.02)
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config)
    hf.save_pretrained(folder, max_shard_size=dense // files)
