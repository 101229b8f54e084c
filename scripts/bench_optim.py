"""Milliseconds and bytes of one step of every optimizer, over tensors of given shapes.

    python scripts/bench_optim.py                                       LoRA of rank 16 on SmolLM2-135M
    python scripts/bench_optim.py --shapes 1024x576 --count 100 --optimizers adamw,muon

`AxB` is a pair of factors A (rank, B) and B (A, rank) of a matrix (A, B); with `--full` it is the matrix itself. Bytes
are those of the state after the first step, counted exactly. Milliseconds are the median of steps that others did not
disturb (bench_pairs.py), or null under five of them. An optimizer that cannot take these tensors, or that computes
losses itself, is named with the reason. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench_pairs import timed
from bench_record import leave
from bench_settings import LR, QUIET_PAIRS
from bench_train import guarded
from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import LrftError, UsageError
from lrft.training import updates

# (out, in) of the linear layers of a SmolLM2-135M, of which it has 30 each.
SHAPES = "576x576,192x576,192x576,576x576,1536x576,1536x576,576x1536"


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Step each optimizer, report.

    Raises:
        UsageError: an optimizer or a shape that there is not.
    """
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--optimizers", default=",".join(OPTIMIZERS.names()))
    made.add_argument("--shapes", default=SHAPES)
    made.add_argument("--count", type=int, default=30, help="of each shape")
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--full", action="store_true", help="the matrices themselves, not their factors")
    made.add_argument("--steps", type=int, default=9, help="quiet ones that are asked for")
    made.add_argument("--foreign", type=float, default=0.1)
    made.add_argument("--record", type=Path, metavar="FILE.json")
    arguments = made.parse_args(given)
    shapes = [shape_of(word) for word in arguments.shapes.split(",")]
    names = arguments.optimizers.split(",")
    if unknown := sorted(set(names) - set(OPTIMIZERS.names())):
        raise UsageError(
            f"--optimizers: {', '.join(unknown)}: no such optimizer; see `lrft methods ls optimizer`"
        )
    print(f"{'optimizer':<18}{'ms':>10}{'MiB of state':>14}{'bytes a number':>16}")
    rows = []
    for name in names:
        infos = parameters(shapes, arguments.count, None if arguments.full else arguments.rank)
        rows.append(stepped(name, infos, arguments.steps, arguments.foreign))
        print(line(rows[-1]), flush=True)
    settings = {key: value for key, value in vars(arguments).items() if key != "record"}
    return leave("optim", settings, {"optimizers": rows}, given, arguments.record)


def shape_of(word: str) -> tuple[int, int]:
    """(out, in) of `OUTxIN`.

    Raises:
        UsageError: it is none.
    """
    out, _, into = word.partition("x")
    if not (out.isdigit() and into.isdigit()):
        raise UsageError(f"--shapes: {word!r} is no shape; write OUTxIN, as in 576x1536")
    return int(out), int(into)


def parameters(shapes: Sequence[tuple[int, int]], count: int, rank: int | None) -> list[ParamInfo]:
    """Tensors with gradients, the same every time: pairs of factors as an adapter has them, or matrices."""
    torch.manual_seed(0)
    infos = []
    for layer in range(count):
        for place, (out, into) in enumerate(shapes):
            site, block = f"layers.{layer}.map{place}", f"layers.{layer}"
            if rank is None:
                infos.append(ParamInfo(site, given_gradient(out, into), "matrix", block=block))
                continue
            A, B = given_gradient(rank, into), given_gradient(out, rank)
            infos.append(ParamInfo(f"{site}.A", A, "lora_A", site, partner=B, block=block))
            infos.append(ParamInfo(f"{site}.B", B, "lora_B", site, partner=A, block=block))
    return infos


def given_gradient(rows: int, columns: int) -> nn.Parameter:
    """A float32 tensor with a gradient."""
    parameter = nn.Parameter(torch.randn(rows, columns) * 0.02)
    parameter.grad = torch.randn(rows, columns) * 1e-3
    return parameter


def stepped(name: str, infos: list[ParamInfo], steps: int, foreign: float) -> dict[str, Any]:
    """One optimizer's row."""
    numbers = sum(info.param.numel() for info in infos)
    row: dict[str, Any] = {
        "optimizer": name,
        "numbers": numbers,
        "ms": None,
        "bytes": None,
        "n": 0,
        "missed": None,
    }
    try:
        optimizer = OPTIMIZERS.get(name).build(infos, OPTIMIZERS.settings(name, lr=LR))
        if contract_of(optimizer).calls_closure:
            return row | {"missed": "computes losses itself, so that a step is forward passes"}
        optimizer.step()
    except (LrftError, ValueError) as error:
        return row | {"missed": str(error)}
    row["bytes"] = updates.state_bytes(optimizer)
    taken: list[float] = []
    discarded = 0
    while len(taken) < steps and discarded < 4 * steps:
        seconds, _, load = timed(lambda _: optimizer.step() or 0.0, None)
        if load > foreign:
            discarded += 1
        else:
            taken.append(seconds * 1e3)
    row |= {"n": len(taken), "discarded": discarded, "samples": taken}
    if len(taken) < QUIET_PAIRS:
        return row | {"missed": f"only {len(taken)} quiet steps, {discarded} discarded: no time"}
    return row | {"ms": statistics.median(taken), "min": min(taken), "max": max(taken)}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if row["bytes"] is None:
        return f"{row['optimizer']:<18}{row['missed']}"
    ms = "-" if row["ms"] is None else f"{row['ms']:.2f}"
    return (
        f"{row['optimizer']:<18}{ms:>10}{row['bytes'] / 2**20:>14.2f}{row['bytes'] / row['numbers']:>16.2f}"
        f"{'  ' + row['missed'] if row['missed'] else ''}"
    )


if __name__ == "__main__":
    raise SystemExit(guarded(main))
