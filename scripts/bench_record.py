"""What a benchmark leaves: one JSON line on standard output, and an entry of a file from which a page is made."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lrft.core.plain import plain
from lrft.ops.products import FEW, working
from lrft.registry.json import to_section
from lrft.training.versions import environment

PEERS = ("peft", "trl")
SCRIPTS = {"gpu": "gpu_check.py"}  # kind -> script, where it is not bench_KIND.py


def leave(
    kind: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    given: Sequence[str] | None,
    file: Path | None,
) -> dict[str, Any]:
    """Print the record as the last line, append it to `file` where one is named, and return it."""
    record = made(kind, settings, result, given)
    if file is not None:
        append(file, record)
    print(json.dumps(record), flush=True)
    return record


def made(
    kind: str, settings: dict[str, Any], result: dict[str, Any], given: Sequence[str] | None
) -> dict[str, Any]:
    """A record.

    Args:
        kind: which benchmark, by which the page knows it.
        given: the command line; by default that of this process.
    """
    return {
        "kind": kind,
        "date": datetime.date.today().isoformat(),
        "command": command(SCRIPTS.get(kind, f"bench_{kind}.py"), sys.argv[1:] if given is None else given),
        **made_on(),
        "settings": plain(settings),  # infinity is no JSON
        "result": plain(result),
    }


def made_on() -> dict[str, Any]:
    """Versions, hardware and commit, those of the peers too."""
    found = environment()
    versions = dict(found["versions"])
    for peer in PEERS:
        try:
            versions[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            versions[peer] = None
    products = str(working(torch.empty(FEW, 1, dtype=torch.bfloat16))).removeprefix("torch.")
    hardware = {**found["hardware"], "bfloat16_products_in": products}
    return {"versions": versions, "hardware": hardware, "git": found["git"]}


def command(script: str, given: Sequence[str]) -> str:
    """The command as it can be repeated elsewhere: files by their names, and where the record went left out."""
    words: list[str] = []
    skip = False
    for word in given:
        if skip or word == "--record" or word.startswith("--record="):
            skip = word == "--record"
            continue
        option, equals, value = word.rpartition("=")
        words.append(f"{option}{equals}{Path(value).name if os.path.isabs(value) else value}")
    return shlex.join(["python", f"scripts/{script}", *words])


def read(file: Path | None) -> list[dict[str, Any]]:
    """The records of a file; none where it is not there."""
    found: list[dict[str, Any]] = (
        json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else []
    )
    return found


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a record to the list that `file` holds, which is begun where it is not there."""
    put(file, record, lambda *_: False)


def put(file: Path, record: dict[str, Any], same: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
    """Put a record in the place of the one that is the same in another state, or at the end."""
    records = read(file)
    at = next((n for n, other in enumerate(records) if same(other, record)), len(records))
    records[at : at + 1] = [dict(to_section(plain(record)))]
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.tmp")
    scratch.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    scratch.replace(file)
