"""A tiny Llama as a GGUF file, matrices of its layers in 8 bits, with a tokenizer of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WIDTH, INNER, LAYERS = 64, 128, 2
LAYER = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // 2, WIDTH),
    "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path, tokenizer: Path, tied: bool = True) -> None:
    """Write it; `tokenizer` is the folder of a tokenizer.json, and `tied` says whether the embedding is the head."""
    import gguf

    tokens, merges = _vocabulary(tokenizer / "tokenizer.json")
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        **{
            "context_length": 256,
            "embedding_length": WIDTH,
            "block_count": LAYERS,
            "feed_forward_length": INNER,
        },
        **{
            "head_count": 4,
            "head_count_kv": 2,
            "layer_norm_rms_eps": 1e-5,
            "rope_dimension_count": WIDTH // 4,
        },
        **{"vocab_size": len(tokens), "tokenizer_model": "gpt2", "tokenizer_pre": "default"},
        **{"token_list": tokens, "token_types": [1] * len(tokens), "token_merges": merges},
        **{"bos_token_id": 1, "eos_token_id": 2, "chat_template": TEMPLATE},
    }.items():
        getattr(writer, f"add_{name}")(value)
    generator = torch.Generator().manual_seed(0)
    for name, shape in _shapes(len(tokens), tied).items():
        values = torch.randn(shape, generator=generator).mul(0.05).numpy()
        if len(shape) == 2 and "blk" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    write_out(writer)


def write_out(writer: object) -> None:
    """Write what a `gguf.GGUFWriter` was given, and close it."""
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def _vocabulary(file: Path) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges, as GGUF has them."""
    held = json.loads(file.read_text())
    words = {**held["model"]["vocab"], **{t["content"]: t["id"] for t in held["added_tokens"]}}
    tokens = sorted(words, key=lambda word: words[word])
    tokens += ["<|endoftext|>"] if "<|endoftext|>" not in words else []
    return tokens, [" ".join(pair) if isinstance(pair, list) else pair for pair in held["model"]["merges"]]


def _shapes(vocabulary: int, tied: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    if not tied:
        found["output.weight"] = (vocabulary, WIDTH)
    for layer in range(LAYERS):
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        found |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    return found
