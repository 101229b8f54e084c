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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench_ceiling import Shapes, rates, shapes_of, step_operations
from bench_generate import lrft_writers, peft_writers
from bench_memory import forget, high_water
from bench_pairs import measure, summary, timed, warm
from bench_record import leave
from bench_rows import Work, mixed_work, random_work
from bench_settings import Settings
from bench_sides import Side, lrft_side, peer_side
from make_tiny_model import make_tokenizer

ROOT = Path(__file__).parents[1]
DATA = ROOT / "recipes" / "data" / "quickstart"
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
STAND_IN = "bitsandbytes is not installed: nf4_reference stands in, which PEFT does not have"
STEPS = 40  # of the training that is killed


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


def dense_step(bench: Bench) -> dict[str, Any]:
    """A step on bfloat16 weights."""
    settings = bench.settings()
    return beside(bench, settings, random_work(settings)[0])


def nf4_step(bench: Bench) -> dict[str, Any]:
    """A step on NF4, by bitsandbytes or by what stands in for it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        settings = bench.settings(quantization="nf4_reference")
        found = beside(bench, settings, random_work(settings)[0], False)
        return found | {"said": f"{found['said']}; {STAND_IN}"}
    settings = bench.settings(quantization="nf4")
    return beside(bench, settings, random_work(settings)[0])


def packed_rows(bench: Bench) -> dict[str, Any]:
    """Documents of mixed lengths: lrft packs them into long rows, PEFT pads them."""
    settings = bench.settings(rows=1, length=bench.length)
    return beside(bench, settings, mixed_work(settings, 8))


def beside(bench: Bench, settings: Settings, work: Work, peer: bool = True) -> dict[str, Any]:
    """Steps of lrft alone for memory, loss and speed, then in turn with PEFT's where it is installed.

    Passed where the loss of one batch, learnt again and again, is finite and falls, and is that of PEFT at the start.
    """
    shapes = shapes_of(settings)
    ours = lrft_side(settings)
    try:
        found = alone(bench, ours, work, shapes)
        if not peer or importlib.util.find_spec("peft") is None:
            return found | {"said": f"{found['said']}; nothing beside it"}
        return found | against(bench, found, ours, settings, work, shapes)
    finally:
        ours.release()


def alone(bench: Bench, side: Side, work: Work, shapes: Shapes) -> dict[str, Any]:
    """Speed, memory and losses of one side."""
    forget(bench.device)
    losses, seconds = [], []
    for _ in range(5):
        taken, loss, _ = timed(side.step, work)
        losses.append(loss)
        seconds.append(taken)
    best = sorted(seconds[2:])[1]
    operations = step_operations(shapes, work.lengths, work.targets, side.trained)
    found = {
        "losses": losses,
        "tokens_per_second": work.tokens / best,
        "utilisation": operations / best / bench.rate / 1e9,
        "peak_bytes": high_water(bench.device),
    }
    said = (
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['utilisation']:.0%} of the card's matrix rate, "
        f"{found['peak_bytes'] / 2**30:.2f} GiB, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    )
    return found | {"passed": all(map(math.isfinite, losses)) and losses[-1] < losses[0], "said": said}


def against(
    bench: Bench, found: dict[str, Any], ours: Side, settings: Settings, work: Work, shapes: Shapes
) -> dict[str, Any]:
    """The ratio of times in turn, PEFT's peak and first loss; where PEFT itself fails, that is said and no fault."""
    held = held_now(bench.device)
    try:
        theirs = peer_side("peft", settings, ours.keys, ours.trained)
        forget(bench.device)
        first = theirs.step(work)
        peak = high_water(bench.device) - held
        warm([theirs], work, 1)
    except Exception as error:  # whatever PEFT, or the card under it, raises
        reason = (str(error).strip().splitlines() or [""])[0]
        return {"said": f"{found['said']}; PEFT fails here ({type(error).__name__}: {reason[:160]})"}
    pairs, discarded = measure(ours, theirs, [work], bench.pairs, math.inf)
    pairing = summary(ours, theirs, pairs, discarded, [work.tokens])
    theirs.release()
    said = f"{found['said']}; PEFT began at loss {first:.3f} and took {peak / 2**30:.2f} GiB beside lrft's model; "
    if pairing["ratio"] is None:
        said += pairing["missed"]
    else:
        seconds, rate = pairing["seconds"][theirs.name], pairing["tokens_per_second"][theirs.name]
        operations = step_operations(shapes, work.lengths, work.targets, theirs.trained)
        share = operations / seconds / bench.rate / 1e9
        said += (
            f"{rate:,.0f} tokens/s, {share:.0%}; PEFT / lrft {pairing['ratio']['median']:.2f}, n={len(pairs)}"
        )
    same = math.isclose(first, found["losses"][0], rel_tol=0.02)
    return {"passed": found["passed"] and same, "said": said, "pairing": pairing, "peer_peak_bytes": peak}


def held_now(device: str) -> int:
    """Bytes that lrft's side holds while PEFT's takes its steps; on a CPU the mark is of the whole process."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated(device)


def checkpointing(bench: Bench) -> dict[str, Any]:
    """Activations computed again: the same first loss with less memory."""
    found = {}
    for on in (False, True):
        settings = bench.settings(checkpointing=on, rows=1, length=bench.length)
        work = mixed_work(settings, 8)
        side = lrft_side(settings)
        forget(bench.device)
        found[on] = (side.step(work), high_water(bench.device))
        side.release()
    (plain, most), (again, least) = found[False], found[True]
    lower = bench.rehearse or least < most  # a tiny model's activations are lost in what the process holds
    said = f"loss {plain:.4f} and {again:.4f}, {most / 2**30:.2f} and {least / 2**30:.2f} GiB"
    return {"passed": math.isclose(plain, again, rel_tol=1e-3) and lower, "said": said}


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
