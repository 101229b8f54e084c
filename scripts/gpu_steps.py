"""Training steps on a card, each beside PEFT's where that is installed: dense, on NF4, packed, checkpointed."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch

from bench_ceiling import Shapes, shapes_of, step_operations
from bench_memory import forget, high_water
from bench_pairs import measure, summary, timed, warm
from bench_rows import Work, mixed_work, random_work
from bench_settings import Settings
from bench_sides import Side, lrft_side, peer_side
from gpu_bench import Bench

STAND_IN = "bitsandbytes is not installed: nf4_reference stands in, which PEFT does not have"


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
    found: dict[str, Any] = {
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
