"""Everything that only a CUDA card can show, in one go of under ten minutes, and a record of it.

    python scripts/gpu_check.py --record docs/measured/CARD.json
    python scripts/gpu_check.py --layers 32        all layers of an 8B model; the default is 8, a quarter of the weights
    python scripts/gpu_check.py --rehearse         the same code on the CPU with a tiny model, to see that it runs

It makes a Llama of random weights in the shape of Llama-3-8B, and then, each beside PEFT with SDPA on padded rows where
PEFT is installed: the tests marked `gpu`; a step on bfloat16 and on NF4; packed rows of 4,096 tokens; each with tokens
per second, peak memory, and the share of the card's own measured rate of matrix products that the step's arithmetic
comes to (bench_ceiling.py has the formula). Then checkpointing of activations, a training that is killed and goes on,
and generation. Without bitsandbytes the NF4 of PyTorch alone stands in, and the record says so.

A check that fails is recorded with what it said and the next one is begun; one that would begin after `--limit` seconds
is left out and named. Exit code 0 where all passed, 1 where one failed or was left out, 2 where there is no card.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench_generate import lrft_writers, peft_writers
from bench_pairs import measure, summary, timed, warm
from bench_record import leave
from bench_rows import random_work
from bench_sides import lrft_side, peer_side
from gpu_bench import Bench, prepare
from gpu_steps import checkpointing, dense_step, nf4_step, packed_rows

ROOT = Path(__file__).parents[1]
DATA = ROOT / "recipes" / "data" / "quickstart"
STEPS = 40  # of the training that is killed


def main(given: Sequence[str] | None = None) -> int:
    """Check everything, record, and give the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--layers", type=int, help="of the random Llama: 8, or 2 in a rehearsal")
    made.add_argument("--limit", type=float, default=480.0, help="seconds after which no check is begun")
    made.add_argument(
        "--only", action="append", choices=list(CHECKS), metavar="CHECK", help="this check; may be repeated"
    )
    made.add_argument("--rehearse", action="store_true", help="on the CPU, with a tiny model")
    made.add_argument("--record", type=Path, metavar="FILE.json")
    arguments = made.parse_args(given)
    if not arguments.rehearse and not torch.cuda.is_available():
        print(
            "gpu_check: torch sees no CUDA card here; --rehearse runs the same code on the CPU",
            file=sys.stderr,
        )
        return 2
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        bench = prepare(arguments, Path(scratch))
        checks = [
            attempt(name, check, bench, began + arguments.limit - time.perf_counter())
            for name, check in CHECKS.items()
            if arguments.only is None or name in arguments.only
        ]
    settings = {
        "layers": arguments.layers,
        "rehearse": arguments.rehearse,
        "limit": arguments.limit,
        "only": arguments.only,
    }
    result = {
        "gflops": bench.rate,
        "checks": checks,
        "seconds": time.perf_counter() - began,
    }
    leave("gpu", settings, result, given, arguments.record)
    return int(not all(check["passed"] for check in checks))


def attempt(name: str, check: Callable[[Bench], dict[str, Any]], bench: Bench, left: float) -> dict[str, Any]:
    """One check: what it found, or why it failed; never an exception."""
    began = time.perf_counter()
    if left <= 0:
        found: dict[str, Any] = {"passed": False, "said": "left out: no time was left"}
    else:
        try:
            found = check(bench)
        except Exception as error:  # whatever a card, a driver or a peer raises
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            found = {"passed": False, "said": f"{type(error).__name__}: {reason[:300]}"}
    found = {"name": name, **found, "seconds": time.perf_counter() - began}
    print(f"{name}: {'passed' if found['passed'] else 'FAILED'}; {found['said']}", flush=True)
    return found


def marked_tests(bench: Bench) -> dict[str, Any]:
    """`pytest -m gpu`; a rehearsal collects them only, as there is nothing to run them on."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/methods/optim",
    ]
    words[-1:] = ["--collect-only", "tests/methods/optim/test_adamw8bit.py"] if bench.rehearse else ["tests"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    return {"passed": done.returncode == 0, "said": last.strip("= ")}


def killed_and_resumed(bench: Bench) -> dict[str, Any]:
    """`kill -9` in the middle of a training; going on ends where an untouched one ends."""
    from lrft.api.training.train import train

    recipe = bench.scratch / "killed.yaml"
    recipe.write_text(json.dumps(training(bench)), encoding="utf-8")
    stopped = bench.scratch / "stopped"
    step = kill_after(recipe, stopped, 2)
    resumed = train(recipe, stopped, resume=True)
    whole = train(recipe, bench.scratch / "whole")
    files = [
        folder / "adapter" / "adapter_model.safetensors" for folder in (stopped, bench.scratch / "whole")
    ]
    same = files[0].read_bytes() == files[1].read_bytes()
    close = math.isclose(resumed["loss"], whole["loss"], rel_tol=1e-3)  # type: ignore[arg-type]
    said = (
        f"killed after step {step} of {STEPS}, ended at loss {resumed['loss']:.6f}, untouched {whole['loss']:.6f}, "
        f"the adapters are {'the same bytes' if same else 'not the same bytes'}"
    )
    # On a CPU the bytes are promised; on a card some sums are in no fixed order.
    return {"passed": resumed["step"] == STEPS and (same if bench.device == "cpu" else close), "said": said}


def training(bench: Bench) -> dict[str, Any]:
    """The recipe that is killed: short rows, a checkpoint every step."""
    rows = {"source": str(DATA / "train.jsonl"), "limit": 100}
    return {
        "model": {"name": str(bench.model), "dtype": "bfloat16"},
        "quantization": "nf4_reference",
        "adapter": {"method": "lora", "rank": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        "optimizer": {"method": "adamw", "lr": 1e-3},
        "data": {"train": rows, "format": {"method": "prompt_completion", "render": "chat"}},
        "train": {
            "max_steps": STEPS,
            "batch_size": 2,
            "max_length": 160,
            "save_every": 1,
            "device": bench.device,
        },
    }


def kill_after(recipe: Path, folder: Path, step: int) -> int:
    """Start a training, kill it once a step's checkpoint is whole, and give the last step that it had saved.

    Raises:
        RuntimeError: it ended before it could be killed.
    """
    words = [sys.executable, "-m", "lrft", "train", str(recipe), "--out", str(folder), "-q"]
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (folder / "checkpoints" / f"step-{step}" / "manifest.json").is_file():
            if process.poll() is not None:
                _, said = process.communicate()
                raise RuntimeError(
                    f"the training ended by itself with {process.returncode}: {said.strip()[-200:]}"
                )
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    if (folder / "result.json").is_file():
        raise RuntimeError("the training had ended before it was killed")
    saved = (folder / "checkpoints").glob("step-*/manifest.json")
    return max(int(manifest.parent.name.rpartition("-")[2]) for manifest in saved)


def generation(bench: Bench) -> dict[str, Any]:
    """Greedy tokens of lrft, alone and in turn with PEFT's."""
    new = 4 if bench.rehearse else 64
    settings = bench.settings(length=16)
    prompts = [document.input_ids for document in random_work(settings)[0].documents]
    ours = lrft_side(settings)
    written, _ = lrft_writers(ours.model, new)
    count = written.step(prompts)
    seconds, _, _ = timed(written.step, prompts)
    with mock.patch("lrft.evaluation.generate.STATIC_ON", ()):
        grown, _, _ = timed(written.step, prompts)
    said = f"{count / seconds:,.0f} tokens/s, {count / grown:,.0f} with a cache that grows"
    if importlib.util.find_spec("peft") is not None:
        theirs = peer_side("peft", settings, ours.keys, ours.trained)
        other, _ = peft_writers(theirs.model, new, bench.device)
        warm([other], prompts, 1)
        pairs, discarded = measure(written, other, [prompts], bench.pairs, math.inf)
        ratio = summary(written, other, pairs, discarded, [new * len(prompts)])["ratio"]
        said += "; too few pairs for a ratio" if ratio is None else f"; PEFT / lrft {ratio['median']:.2f}"
        theirs.release()
    ours.release()
    return {"passed": count == new * len(prompts), "said": said}


CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "a step on bfloat16": dense_step,
    "a step on NF4": nf4_step,
    "packed rows": packed_rows,
    "checkpointing": checkpointing,
    "killed and resumed": killed_and_resumed,
    "generation": generation,
    "tests marked gpu": marked_tests,
}


def environment() -> dict[str, str]:
    """Of a child: this checkout is what it imports."""
    roots = [str(ROOT), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(roots), "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    raise SystemExit(main())
