"""The most memory that one training step needs, of lrft and of PEFT, each in a fresh process.

    python scripts/bench_memory.py                    4 rows of 256 tokens, LoRA on NF4
    python scripts/bench_memory.py --rows 8 --record FILE.json

A process loads the model, forgets the high-water mark of that (Linux, /proc/self/clear_refs), takes `--steps` steps and
says VmHWM: `step` is the mark of the steps, the loaded model in it; `whole` that of the process with loading. On a GPU
it is what torch's allocator held at most. The ratio is lrft's mark over the peer's; the interpreter and its libraries,
a few hundred MiB on a CPU, are in both. Memory does not depend on who else uses the machine, so one process a side is
enough; `--repeats` says how far that is true. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench_record import leave
from bench_rows import make_work
from bench_settings import Settings, parser, settings_of
from bench_sides import Keys, Side, lrft_side, peer_side, require
from bench_train import guarded
from lrft.registry.errors import LrftError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(given: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Start the processes, or be one of them.

    Raises:
        UsageError: PEFT is not installed or has no form of the method.
        LrftError: a process failed.
    """
    made = parser(__doc__)
    made.add_argument("--peer", default="peft", choices=["peft", "none"])
    made.add_argument("--repeats", type=int, default=1, help="processes of each side")
    made.add_argument("--steps", type=int, default=2)
    made.add_argument("--child", help=argparse.SUPPRESS)
    arguments = made.parse_args(given)
    settings = settings_of(arguments)
    if arguments.child:
        print(json.dumps(peaks(settings, arguments.child, arguments.steps)))
        return None
    sides: dict[str, Any] = {"lrft": None}
    if arguments.peer != "none":
        require(arguments.peer)
        sides[arguments.peer] = described(
            settings
        )  # loads the model once here, so that no child has to convert it
    found = {
        name: [
            child(settings, {"side": name, "keys": keys}, arguments.steps) for _ in range(arguments.repeats)
        ]
        for name, keys in sides.items()
    }
    return leave("memory", settings.record(), report(found), given, arguments.record)


def described(settings: Settings) -> dict[str, Any]:
    """What PEFT calls the method and how many numbers train, from a model of lrft that is then let go."""
    ours = lrft_side(settings)
    kept = {"keys": ours.keys, "trained": ours.trained}
    ours.release()
    return kept


def child(settings: Settings, asked: dict[str, Any], steps: int) -> dict[str, int]:
    """The marks of a process of its own.

    Raises:
        LrftError: it failed; with the last line it said.
    """
    words = [*settings.arguments(), "--steps", str(steps), "--child", json.dumps(asked)]
    roots = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LrftError(f"the process of {asked['side']} ended with {done.returncode}: {last}")
    marks: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return marks


def peaks(settings: Settings, asked: str, steps: int) -> dict[str, int]:
    """Bytes at most, over the whole process and over its steps."""
    side = made_side(settings, **json.loads(asked))
    work = make_work(settings)
    loaded = high_water(settings.device)
    forget(settings.device)
    for index in range(steps):
        side.step(work[index % len(work)])
    step = high_water(settings.device)
    return {"step": step, "whole": max(step, loaded)}


def made_side(settings: Settings, side: str, keys: dict[str, Any] | None) -> Side:
    """The side of a process."""
    if side == "lrft" or keys is None:
        return lrft_side(settings)
    peft_keys: Keys | None = keys["keys"]
    return peer_side(side, settings, peft_keys, keys["trained"])


def high_water(device: str) -> int:
    """Bytes that this process had at most since the mark was forgotten."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget(device: str) -> None:
    """Begin to count anew from what is held now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        CLEAR.write_text("5")


def report(found: dict[str, list[dict[str, int]]]) -> dict[str, Any]:
    """Medians in bytes by side, and lrft over the peer."""
    result: dict[str, Any] = {"samples": found, "n": len(next(iter(found.values())))}
    for mark in ("step", "whole"):
        medians = {name: statistics.median(marks[mark] for marks in runs) for name, runs in found.items()}
        result[mark] = {"bytes": medians, "ratio": None}
        said = ", ".join(f"{name} {value / 2**20:,.0f} MiB" for name, value in medians.items())
        peers = [name for name in medians if name != "lrft"]
        if peers:
            result[mark]["ratio"] = medians["lrft"] / medians[peers[0]]
            said += f": {result[mark]['ratio']:.2f}"
        print(f"{mark}: {said}")
    return result


if __name__ == "__main__":
    raise SystemExit(guarded(main))
