"""Two things timed in turn in one process, A B then B A, on a machine that others use too.

Absolute times on a shared machine wander, so a figure is the median ratio of neighbouring steps. Steps during which
other processes used more than `foreign` cores are done again, at most four times as often as pairs were asked for;
with fewer than five quiet pairs there is no headline, and the record says so.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from bench_settings import QUIET_PAIRS


class Timed(Protocol):
    """One side of a pair."""

    @property
    def name(self) -> str:
        """As in the record."""

    @property
    def step(self) -> Callable[[Any], float]:
        """What is timed; gives the loss."""


def measure(
    a: Timed, b: Timed, work: Sequence[Any], pairs: int, foreign: float
) -> tuple[list[dict[str, float]], int]:
    """Quiet pairs, and how many were thrown away. A pair holds seconds and loss of each side by its name."""
    found: list[dict[str, float]] = []
    discarded = 0
    while len(found) < pairs and discarded < 4 * pairs:
        item = work[len(found) % len(work)]
        pair, loads = {"item": float(len(found) % len(work))}, []
        for side in (a, b) if len(found) % 2 == 0 else (b, a):
            pair[side.name], pair[f"{side.name} loss"], load = timed(side.step, item)
            loads.append(load)
        if max(loads) > foreign:
            discarded += 1
            continue
        found.append(pair)
        print(f"pair {len(found)}: {a.name} {pair[a.name]:.3f} s, {b.name} {pair[b.name]:.3f} s", flush=True)
    return found, discarded


def warm(sides: Sequence[Timed], item: Any, times: int = 2) -> None:
    """Run what is to be timed a few times before."""
    for _ in range(times):
        for side in sides:
            side.step(item)


def timed(step: Callable[[Any], float], item: Any) -> tuple[float, float, float]:
    """Seconds, loss, and the cores that other processes used meanwhile."""
    settle()
    busy, own, began = cpu_seconds(), time.process_time(), time.perf_counter()
    loss = step(item)
    settle()
    seconds = time.perf_counter() - began
    return seconds, loss, max(0.0, (cpu_seconds() - busy) - (time.process_time() - own)) / seconds


def settle() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cpu_seconds() -> float:
    """CPU time all processes together have used, idle and waiting left out (Linux)."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def summary(
    a: Timed, b: Timed, pairs: Sequence[dict[str, float]], discarded: int, tokens: Sequence[int]
) -> dict[str, Any]:
    """What a pairing showed: ratio of times b / a, median seconds and tokens per second of each side.

    Args:
        tokens: real tokens of each item of the work.
    """
    found: dict[str, Any] = {
        "sides": [a.name, b.name],
        "n": len(pairs),
        "discarded": discarded,
        "samples": list(pairs),
        "ratio": None,
        "missed": None,
    }
    if len(pairs) < QUIET_PAIRS:
        found["missed"] = f"only {len(pairs)} quiet pairs, {discarded} discarded: no headline"
        print(f"{b.name} / {a.name}: {found['missed']}", flush=True)
        return found
    ratios = [pair[b.name] / pair[a.name] for pair in pairs]
    found["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    found["seconds"] = {side.name: statistics.median(pair[side.name] for pair in pairs) for side in (a, b)}
    found["tokens_per_second"] = {
        side.name: statistics.median(tokens[int(pair["item"])] / pair[side.name] for pair in pairs)
        for side in (a, b)
    }
    print(
        f"{b.name} / {a.name}: {found['ratio']['median']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"n={len(pairs)}",
        flush=True,
    )
    return found
