"""What the checks of a card share: a Llama of random weights on the disk, and the rate of the card's own products."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench_ceiling import rates
from bench_settings import Settings
from make_tiny_model import make_tokenizer

# Of Llama-3-8B, and of what stands for it in a rehearsal.
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
SMALL = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 520,
}


@dataclass
class Bench:
    """What the checks share.

    Attributes:
        model: folder of the random Llama.
        rate: GFLOP/s of a large square product on this device.
        length: tokens of a packed row.
    """

    device: str
    model: Path
    rate: float
    length: int
    pairs: int
    rehearse: bool
    scratch: Path

    def settings(self, **changes: Any) -> Settings:
        """A step on this device; a card is nobody else's, so no step is thrown away."""
        base = Settings(
            model=str(self.model), device=self.device, pairs=self.pairs, foreign=math.inf, eager=True
        )
        return base.but(**{"quantization": "none", "rows": 4, "length": self.length // 4, **changes})


def prepare(arguments: argparse.Namespace, scratch: Path) -> Bench:
    """The model on disk and the card's rate."""
    device = "cpu" if arguments.rehearse else "cuda"
    shape, side, length = (SMALL, 256, 64) if arguments.rehearse else (SHAPE, 8192, 4096)
    layers = arguments.layers or (2 if arguments.rehearse else 8)
    forward, _ = rates(side, side, side, device, 5)
    print(f"{forward / 1e3:.1f} TFLOP/s in a bfloat16 product of side {side}", flush=True)
    model = make_llama(scratch / "model", shape | {"num_hidden_layers": layers}, device)
    pairs = 1 if arguments.rehearse else 5
    return Bench(device, model, forward, length, pairs, arguments.rehearse, scratch)


def make_llama(folder: Path, shape: dict[str, Any], device: str) -> Path:
    """Random weights in bfloat16, drawn on the device, with the tokenizer of the tests."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = AutoConfig.for_model("llama", **shape, **ids, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
