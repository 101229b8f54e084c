"""Make a bed for replays of claims: a small Llama with random weights, its tokenizer, and text cut into rows.

    python scripts/make_bed.py FOLDER --text FILE ... [--other FILE ...] [--pretrain STEPS] [--size p1|p2|60m]
                               [--vocabulary 4096] [--seed 0]

FOLDER gets model/ (weights drawn from the seed, standard deviation 0.02), train.jsonl and valid.jsonl (every twentieth
piece of text), and recipe.yaml, which trains all weights; an optimizer is chosen on top of it:

    lrft train FOLDER/recipe.yaml optimizer='{method: galore, rank: 64, update_every: 8}' optimizer.lr=0.01

With `--pretrain` recipe.yaml is trained for so many steps and the result stands in trained/, a plain model; with
`--other` as well, adapt.yaml fine-tunes it on that text (other.jsonl, other_valid.jsonl), which the tokenizer has seen.
The same arguments give the same bytes; trained weights, on one machine. Text is read from .txt files, and from .jsonl
and .jsonl.gz files by their fields `prompt` and `completion`, or `text`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from make_tiny_model import train_bpe

# size -> hidden, layers, heads, intermediate: 1.9 M and 5.3 M numbers with 4096 tokens, and GaLore's 60M body
SIZES = {"p1": (128, 4, 4, 352), "p2": (256, 4, 4, 688), "60m": (512, 8, 8, 1376)}
PIECE = 1200  # characters of a row
STOP, PAD = "<|end|>", "<|pad|>"
RECIPE = """# A bed for pre-training claims, made by scripts/make_bed.py: all weights train from a random start.

model: {{name: model, dtype: float32}}
trainable: full
optimizer: {{method: adamw, lr: {lr}}}
schedule: {{method: cosine, warmup_ratio: 0.1}}
data:
  train: train.jsonl
  eval: {{source: valid.jsonl, limit: 64}}
  format: text
  too_long: truncate_right
train:
  max_steps: {steps}
  batch_size: 16
  max_length: 128
  packing: true
  eval_every: {steps}
  save_every: 1000
  clip: 1.0
eval: {{tasks: [loss]}}
"""

ADAPT = """# Fine-tuning on the bed: the model that recipe.yaml trained, on text it has not seen.

extends: recipe.yaml

model: {name: trained}
trainable: adapter
adapter: {method: lora, rank: 8, alpha: 16, targets: all-linear}
optimizer: {lr: 0.001}
data:
  train: other.jsonl
  eval: {source: other_valid.jsonl, limit: 64}
"""


def main(arguments: list[str]) -> int:
    """Write the bed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--size", choices=SIZES, default="p1")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of text that are used")
    parser.add_argument("--other", type=Path, nargs="+", help="text to fine-tune on after --pretrain")
    parser.add_argument("--pretrain", type=int, metavar="STEPS", help="train recipe.yaml for so many steps")
    parser.add_argument("--rate", type=float, default=0.003, help="learning rate of recipe.yaml")
    parser.add_argument("--steps", type=int, default=400, help="of the recipes")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    texts = {"--text": list(cut(chosen.text, chosen.characters))}
    if chosen.other:
        texts["--other"] = list(cut(chosen.other, chosen.characters))
    for flag, pieces in texts.items():
        if len(pieces) < 40:
            parser.error(f"{flag}: {len(pieces)} rows of text are too few; give more")
    folder = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer([piece for pieces in texts.values() for piece in pieces], chosen.vocabulary)
    make_model(chosen.size, tokenizer, chosen.seed).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    seen, held_out = write_rows(texts["--text"], folder / "train.jsonl", folder / "valid.jsonl")
    recipe = RECIPE.format(lr=chosen.rate, steps=chosen.steps)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    print(f"{folder}: {seen} rows to train on, {held_out} held out")
    if chosen.other:
        write_rows(texts["--other"], folder / "other.jsonl", folder / "other_valid.jsonl")
        (folder / "adapt.yaml").write_text(ADAPT, encoding="utf-8")
    if chosen.pretrain:
        pretrain(folder, chosen.pretrain)
    return 0


def write_rows(pieces: list[str], train: Path, valid: Path) -> tuple[int, int]:
    """Every twentieth piece into `valid`, the rest into `train`; how many each has."""
    held_out = [piece for index, piece in enumerate(pieces) if index % 20 == 19]
    seen = [piece for index, piece in enumerate(pieces) if index % 20 != 19]
    for path, rows in ((train, seen), (valid, held_out)):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return len(seen), len(held_out)


def pretrain(folder: Path, steps: int) -> None:
    """Train the bed's recipe and leave the model in trained/."""
    from lrft.api.merging.merge import merge
    from lrft.api.training.train import train
    from lrft.recipe.load import load_recipe
    from lrft.training.folder import RunFolder

    if (folder / "trained").exists():
        return
    every = [f"train.max_steps={steps}", f"train.eval_every={steps}"]
    train(load_recipe(folder / "recipe.yaml", every), folder / "pretraining", resume=True)
    merge(RunFolder(folder / "pretraining"), folder / "trained", None)


def make_model(size: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The Llama of a size, float32, its weights drawn from the seed."""
    hidden, layers, heads, intermediate = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def make_tokenizer(pieces: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the text."""
    tokenizer = train_bpe(pieces, vocabulary, [PAD, STOP])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=STOP)


def cut(files: list[Path], characters: int) -> Iterator[str]:
    """Pieces of about `PIECE` characters, cut at line ends, until `characters` are used."""
    left, piece = characters, ""
    for line in _lines(files):
        piece += line
        if len(piece) >= PIECE:
            yield piece.strip()
            left -= len(piece)
            piece = ""
        if left <= 0:
            return


def _lines(files: list[Path]) -> Iterator[str]:
    for path in files:
        packed = path.suffix == ".gz"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            for line in file:
                if ".jsonl" in path.suffixes:
                    row = json.loads(line)
                    line = row["text"] if "text" in row else f"{row['prompt']} {row['completion']}\n"
                yield line


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
