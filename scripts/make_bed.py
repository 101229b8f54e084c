"""Make a bed for pre-training claims: a small Llama with random weights, its tokenizer, and text cut into rows.

    python scripts/make_bed.py FOLDER --text FILE ... [--size p1|p2|60m] [--vocabulary 4096] [--seed 0]

FOLDER gets model/ (weights drawn from the seed, standard deviation 0.02), train.jsonl and valid.jsonl (every twentieth
piece of text), and recipe.yaml, which trains all weights; an optimizer is chosen on top of it:

    lrft train FOLDER/recipe.yaml optimizer='{method: galore, rank: 64, update_every: 8}' optimizer.lr=0.01

The same arguments give the same bytes. Text is read from .txt files, and from .jsonl and .jsonl.gz files by their
fields `prompt` and `completion`, or `text`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


def main(arguments: list[str]) -> int:
    """Write the bed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--size", choices=SIZES, default="p1")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of text that are used")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    pieces = list(cut(chosen.text, chosen.characters))
    if len(pieces) < 40:
        parser.error(f"--text: {len(pieces)} rows of text are too few; give more")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(pieces, chosen.vocabulary)
    make_model(chosen.size, tokenizer, chosen.seed).save_pretrained(chosen.folder / "model")
    tokenizer.save_pretrained(chosen.folder / "model")
    held_out = [piece for index, piece in enumerate(pieces) if index % 20 == 19]
    seen = [piece for index, piece in enumerate(pieces) if index % 20 != 19]
    for name, rows in (("train", seen), ("valid", held_out)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (chosen.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (chosen.folder / "recipe.yaml").write_text(RECIPE.format(lr=0.003, steps=chosen.steps), encoding="utf-8")
    print(f"{chosen.folder}: {len(seen)} rows to train on, {len(held_out)} held out")
    return 0


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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, STOP],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
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
