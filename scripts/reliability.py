"""Run the reliability checks in full, or as many as asked for, and keep their counts.

    python scripts/reliability.py                                    every check, as many faults as a release has
    python scripts/reliability.py --kind data,soak --n 100 --seed 7  some, with other seeds
    python scripts/reliability.py --list                             what there is

Work is cut into parts of which each is recorded as it ends; the same command goes on where it was stopped. The tests
under tests/reliability run the same checks with few faults. `scripts/reliability_page.py` makes the page of the record.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]
RECORD = ROOT / "docs" / "reliability.json"
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Kind:
    """A check: what it is called in the plan, what it does, where its function is, and how many faults a release has.

    Attributes:
        part: faults of one recorded part.
    """

    rule: str
    what: str
    function: str
    full: int
    part: int


KINDS = {
    "exact": Kind("R4", "resume after every step, bit for bit", "tests.reliability.exact:check", 912, 19),
    "numbers": Kind(
        "R7", "numbers that are none, never saved", "tests.reliability.hostile_numbers:check", 200, 20
    ),
    "recipes": Kind(
        "R8", "broken recipes, refused in sentences", "tests.reliability.recipes:check", 5000, 500
    ),
    "rows": Kind("R9", "data files with a fault", "tests.reliability.hostile_rows:check", 500, 50),
    "names": Kind("R10", "hostile names and links", "tests.reliability.hostile_names:check", 200, 20),
    "strangers": Kind(
        "R11", "model and adapter folders of strangers", "tests.reliability.hostile_folders:check", 50, 10
    ),
    "bases": Kind(
        "R11",
        "base models, dense, in few bits and GGUF, with a fault",
        "tests.reliability.hostile_bases:check",
        400,
        40,
    ),
    "requests": Kind(
        "R11", "requests of strangers to a server", "tests.reliability.hostile_requests:check", 600, 150
    ),
    "talk": Kind("R11", "lines typed to a conversation", "tests.reliability.hostile_requests:talk", 200, 50),
    "secrets": Kind(
        "R12", "secrets in no byte said or written", "tests.reliability.planted_secrets:check", 30, 10
    ),
    "memory": Kind(
        "R13", "out of memory, and advice that then fits", "tests.reliability.out_of_memory:check", 20, 2
    ),
    "folders": Kind("R14", "two runs in one folder", "tests.reliability.two_runs:check", 20, 10),
    "soak": Kind(
        "R15", "a run of 10,000 steps holds its memory", "tests.reliability.soak:check", 10_000, 10_000
    ),
    "accumulation": Kind(
        "R16", "gradients however rows are cut", "tests.reliability.accumulation:check", 200, 20
    ),
    "kills": Kind(
        "R1, R2", "kill -9 at any instant, and chains", "tests.reliability.connected:kills", 100, 12
    ),
    "signals": Kind("R3", "signals at any instant", "tests.reliability.connected:signals", 100, 10),
    "damage": Kind(
        "R5", "damaged checkpoints and run folders", "tests.reliability.connected:damaged", 1500, 300
    ),
    "inputs": Kind("R5", "damaged inputs of commands", "tests.reliability.damaged_inputs:check", 1200, 150),
    "disk": Kind(
        "R6", "errors at every operation on the disk", "tests.reliability.connected:disk", 1000, 250
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; exit code 1 where something did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default=",".join(KINDS), help="checks, with commas between them")
    parser.add_argument("--n", type=int, help="faults of each; by default as many as a release has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--list", action="store_true", help="print the checks and leave")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(f"{name}: {kind.rule}, {kind.what} ({kind.full})" for name, kind in KINDS.items()))
        return 0
    names = chosen.kind.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"--kind {unknown[0]}: choose of {', '.join(KINDS)}")
    if chosen.n is not None and chosen.n < 1:
        parser.error(f"--n {chosen.n}: give at least 1")
    record = read(chosen.out)
    for name in names:
        run(name, KINDS[name], chosen.n or KINDS[name].full, chosen.seed, record, chosen.out)
    failed = {
        name: record["checks"][name]["failures"] for name in names if record["checks"][name]["failures"]
    }
    for name, sentences in failed.items():
        print("\n".join(f"{name}: {sentence}" for sentence in sentences))
    return int(bool(failed))


def run(name: str, kind: Kind, n: int, seed: int, record: dict[str, Any], out: Path) -> None:
    """The parts of one check that the record does not have yet, each with seeds of its own."""
    from rich.console import Console
    from rich.progress import Progress

    wanted = {"n": n, "seed": seed, **versions()}
    entry = record["checks"].get(name)
    if entry is None or any(entry.get(key) != value for key, value in wanted.items()):
        entry = record["checks"][name] = {
            **wanted,
            "tried": 0,
            "held": 0,
            "failures": [],
            "facts": {},
            "parts": 0,
        }
    parts = [min(kind.part, n - start) for start in range(0, n, kind.part)]
    check = _function(kind.function)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{kind.rule} {name}", total=len(parts), completed=entry["parts"])
        for index in range(entry["parts"], len(parts)):
            outcome = asdict(check(parts[index], seed * 10_007 + index))
            for key in ("tried", "held"):
                entry[key] += outcome[key]
            entry["failures"] = (entry["failures"] + outcome["failures"])[:50]
            for key, value in outcome["facts"].items():
                entry["facts"][key] = max(value, entry["facts"].get(key, value))
            for key, count in outcome["counts"].items():
                entry["facts"][key] = entry["facts"].get(key, 0) + count
            entry["parts"], entry["date"] = index + 1, time.strftime("%Y-%m-%d")
            write(out, record)
            bar.advance(task)


def versions() -> dict[str, str]:
    """What the counts hold for."""
    from lrft import __version__

    return {
        "lrft": __version__,
        "python": platform.python_version(),
        **{p: metadata.version(p) for p in PACKAGES},
    }


def read(path: Path) -> dict[str, Any]:
    """The record so far, or an empty one."""
    if not path.is_file():
        return {"checks": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all: the record is what a stopped check goes on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def _function(name: str) -> Callable[[int, int], Any]:
    module, _, function = name.partition(":")
    found: Callable[[int, int], Any] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(main())
