"""Short runs of every method on GSM8K with SmolLM2, beside LoRA: same rows, steps and seed, the best of a few rates.

    python scripts/evidence.py --data FOLDER_OF_GSM8K --out runs/evidence [--jobs 2] [--only NAME ...]

Each (method, rate) is one process, kept as one line of OUT/results.jsonl: a line that is there is not run again. The
table at the end, OUT/table.md, has the loss on held-out rows before and after, and the seconds. These runs are far too
short to rank methods; they show that each one trains, and what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BASE = [
    "~adapter",
    "model.dtype=bfloat16",
    "quantization=nf4",
    "schedule={method: cosine, warmup_ratio: 0.1}",
    "train.max_steps=12",
    "train.batch_size=1",
    "train.gradient_accumulation=1",
    "train.max_length=384",
    "train.packing=true",
    "train.eval_every=12",
    "train.save_every=1000",
    "train.device=cpu",
    "data.eval.limit=8",
    "data.train.limit=400",
    "data.too_long=drop",
    "eval.tasks=[loss]",
]
FULL = ["trainable={weights: full, update: stochastic}", "quantization=none", "adapter=null"]
RS = "adapter={method: lora, rank: 8, alpha: 16, rslora: true}"
SVD = "adapter={method: svd_lora, rank: 12, alpha: 16}"
CORE = "adapter={method: lora_xs, rank: 64}"

LORA = "adapter={method: lora, rank: 8, alpha: 16}"

# Method -> overrides, and the rates tried: the published one where there is one, and its neighbours.
RATES = (2e-4, 1e-3)
Line = dict[str, Any]
METHODS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "lora": ([], RATES),
    "lora on none": (["quantization=none"], RATES),
    "dora": (["adapter={method: dora, rank: 8, alpha: 16}"], RATES),
    "lora_fa": (["adapter={method: lora_fa, rank: 8, alpha: 16}"], RATES),
    "lora_xs": ([CORE, "init=lora_xs"], (1e-3, 4e-3)),
    "svd_lora": ([SVD], RATES),
    "gated_lora": (["adapter={method: gated_lora, rank: 8}"], RATES),
    "dylora": (["adapter={method: dylora, rank: 8, alpha: 16}", "allocate=dylora"], (4e-4, 2e-3)),
    "gaussian": (["init=gaussian"], RATES),
    "pissa": (["init={method: pissa, niter: 4}"], (2e-5, 2e-4)),
    "qpissa": (["init={method: qpissa, niter: 4}"], (2e-5, 2e-4)),
    "olora": (["init=olora"], (2e-5, 3e-4)),
    "lora_ga": ([RS, "init={method: lora_ga, batches: 4}"], (2e-5, 2e-4)),
    "lora_one": ([RS, "init={method: lora_one, batches: 4}"], RATES),
    "lora_sb": ([CORE, "init={method: lora_sb, batches: 4}"], (1e-4, 1e-3)),
    "corda": (["init={method: corda, batches: 4}"], (2e-5, 2e-4)),
    "eva": (["init={method: eva, batches: 8}"], (5e-4, 1e-3)),
    "loftq": (["init={method: loftq, niter: 4}"], RATES),
    "adalora": ([SVD, "allocate={method: adalora, target_rank: 8, every: 1}"], (5e-4, 2e-3)),
    "dora_rank": (["adapter={method: svd_lora, rank: 12, alpha: 16}", "allocate=dora_rank"], (2e-4, 2e-3)),
    "codyra": (["adapter={method: gated_lora, rank: 12}", "allocate={method: codyra, levels: 4}"], RATES),
    "spafit": (["allocate=spafit"], RATES),
    "relora": (["restart={method: relora, every: 4, warmup: 2}"], RATES),
    "periodic": (["restart={method: periodic, every: 4}"], RATES),
    "periodic, share 0.5": (["restart={method: periodic, every: 4, share: 0.5}"], RATES),
    "cola": (["restart={method: cola, links: 2}"], RATES),
    "lora_plus": (["optimizer={method: lora_plus, ratio: 16}"], (1e-4, 5e-4)),
    "lora_pro": (["optimizer=lora_pro"], (2e-5, 2e-4)),
    "lora_fa, corrected": (["adapter={method: lora_fa, rank: 8, alpha: 16}", "optimizer=lora_fa"], RATES),
    "sgd": (["optimizer=sgd"], (1e-2, 1e-1)),
    "adamw8bit": (["optimizer=adamw8bit"], RATES),
    "mezo": (["optimizer={method: mezo, eps: 0.01}", "train.clip=null"], (5e-5, 1e-4)),
    "full adamw": (FULL, (1e-5, 5e-5)),
    "galore": ([*FULL, "optimizer={method: galore, rank: 64, update_every: 4}"], (1e-4, 1e-3)),
    "galore, 8 bits, per layer": (
        [
            *FULL,
            "optimizer={method: galore, rank: 64, update_every: 4, bits: 8, per_layer: true}",
            "train.clip=null",
        ],
        (1e-4, 1e-3),
    ),
    "fira": ([*FULL, "optimizer={method: fira, rank: 64, update_every: 4}"], (1e-5, 1e-4)),
    "apollo": ([*FULL, "optimizer={method: apollo, rank: 64, update_every: 4}"], (1e-5, 1e-4)),
    "frugal": ([*FULL, "optimizer={method: frugal, update_every: 4}"], (1e-5, 5e-5)),
    "lisa": ([*FULL, "select={method: lisa, every: 4}"], (1e-5, 5e-5)),
    "badam": ([*FULL, "select={method: badam, every: 4}"], (1e-5, 5e-5)),
    "loramoe": (["adapter={method: loramoe, rank: 4, alpha: 32}"], RATES),
    "mola": (["adapter={method: mola, rank: 4, alpha: 8}", "allocate=mola"], (3e-4, 1e-3)),
    "mixlora": (["adapter={method: mixlora, rank: 4, alpha: 8}"], RATES),
    "masked_thought": (["objective=masked_thought"], RATES),
}


def main(arguments: list[str]) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=None)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    done = {(line["method"], line["lr"]) for line in results(chosen.out)}
    jobs = [
        (name, overrides, lr)
        for name, (overrides, rates) in METHODS.items()
        for lr in rates
        if (name, lr) not in done and (chosen.only is None or name in chosen.only)
    ]

    def go(job: tuple[str, list[str], float]) -> Line:
        name, overrides, lr = job
        return run(name, overrides, lr, chosen.data, chosen.out)

    with ThreadPoolExecutor(chosen.jobs) as pool:
        for number, line in enumerate(pool.map(go, jobs), 1):
            print(f"{number}/{len(jobs)}", line.get("method"), line.get("lr"), line.get("loss"), flush=True)
    (chosen.out / "table.md").write_text(table(results(chosen.out)))
    return 0


def run(name: str, overrides: list[str], lr: float, data: str, out: Path) -> Line:
    """One training in a process of its own; its line is appended to results.jsonl."""
    folder = out / f"{name.replace(' ', '-').replace(',', '')}-{lr:g}"
    command = [sys.executable, "-m", "lrft", "train", "recipes/smollm2-gsm8k-dora.yaml", f"data={data}"]
    named = any(text.startswith("adapter=") for text in overrides)
    command += [
        *BASE,
        *([] if named else [LORA]),
        *overrides,
        f"optimizer.lr={lr:g}",
        "--out",
        str(folder),
        "--json",
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    line: Line = {"method": name, "lr": lr, "seconds": round(time.monotonic() - began, 1)}
    if done.returncode == 0:
        records = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((folder / "result.json").read_text())
        line |= {
            "first": records[0]["loss"],
            "loss": records[-1]["eval_loss"],
            "trainable": result["trainable"],
            "peak": result["peak_memory_bytes"],
        }
        subprocess.run(["rm", "-rf", str(folder / "checkpoints"), str(folder / "adapter")], check=True)
    else:
        line["error"] = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else str(done.returncode)
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def results(out: Path) -> list[Line]:
    """What is there already."""
    path = out / "results.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def table(lines: list[Line]) -> str:
    """One row a method, with its best rate."""
    rows = [
        "| method | rate | held-out loss | others tried | trainable | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        tried = sorted((x for x in lines if x["method"] == name and "loss" in x), key=lambda x: x["loss"])
        failed = [x for x in lines if x["method"] == name and "error" in x]
        if tried:
            best, *rest = tried
            others = "; ".join(f"{x['lr']:g}: {x['loss']:.3f}" for x in rest)
            rows.append(
                f"| {name} | {best['lr']:g} | {best['loss']:.3f} | {others} | {best['trainable']:,} "
                f"| {best['seconds']:.0f} |"
            )
        elif failed:
            rows.append(f"| {name} | | failed: {failed[0]['error']} | | | |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
