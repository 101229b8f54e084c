"""Try every adapter on every storage, keep what happened, and write docs/methods/grid.md from it.

    python scripts/grid.py                         what is missing of train, merge, export and resume
    python scripts/grid.py --adapters lora,dora    of some adapters
    python scripts/grid.py --what compile          minutes an adapter: tracing takes longer than all else
    python scripts/grid.py --fresh --adapters dora what is there is done again
    python scripts/grid.py --check                 nothing is run; exits 1 where the page or its record is out of date

A cell is recorded as it ends, one line of docs/methods/grid.json each, so the same command goes on where it was
stopped, and a method that was added costs its own cells alone. Faults, and cells of another version of lrft, are done
again. Exits 1 where a cell ended in anything but what it asserts or a sentence of refusal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from generated import ROOT, out_of_date
from grid_cells import FAULT, STORAGES, WHATS, Bench, Cell, Row
from grid_page import page
from lrft import __version__
from lrft.core.notes import restored, silence
from lrft.registry.axes import ADAPTERS
from lrft.registry.did_you_mean import did_you_mean

PAGE = ROOT / "docs" / "methods" / "grid.md"
RECORD = ROOT / "docs" / "methods" / "grid.json"
QUICK = tuple(what for what in WHATS if what != "compile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page, or check it; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", help="some, with commas between them; by default all")
    parser.add_argument("--storages", default=",".join(STORAGES))
    parser.add_argument("--what", default=",".join(QUICK), help=f"of {', '.join(WHATS)}")
    parser.add_argument("--fresh", action="store_true", help="also what is recorded already")
    parser.add_argument("--check", action="store_true", help="run and write nothing")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args(arguments)
    if chosen.check:
        wrong = problems(chosen.record, chosen.page)
        print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
        return int(bool(wrong))
    adapters = _of(parser, "--adapters", chosen.adapters, ADAPTERS.names())
    storages = _of(parser, "--storages", chosen.storages, STORAGES)
    whats = _of(parser, "--what", chosen.what, WHATS)
    for cells in run(adapters, storages, whats, read(chosen.record), chosen.fresh):
        write(chosen.record, [*read(chosen.record), *cells])
        for cell in cells:
            print(f"{cell.adapter} {cell.storage} {cell.what}: {cell.outcome} {cell.said}", flush=True)
        chosen.page.write_text(page(read(chosen.record)), encoding="utf-8")
    cells = read(chosen.record)
    chosen.page.write_text(page(cells), encoding="utf-8")
    return int(any(cell.outcome == FAULT for cell in cells))


def run(
    adapters: Sequence[str], storages: Sequence[str], whats: Sequence[str], known: Sequence[Cell], fresh: bool
) -> Iterator[list[Cell]]:
    """The missing cells of each adapter on each storage, as they end."""
    kept = [cell for cell in known if cell.version == __version__ and cell.outcome != FAULT]
    done = {(cell.adapter, cell.storage, cell.what) for cell in kept}
    untrained = {(cell.adapter, cell.storage) for cell in known if cell.what == "train" and not cell.trains}
    with tempfile.TemporaryDirectory() as scratch, restored():
        silence(True)
        bench = Bench(Path(scratch))
        for adapter in adapters:
            for storage in storages:
                missing = [what for what in whats if fresh or (adapter, storage, what) not in done]
                if not fresh and (adapter, storage) in untrained and (adapter, storage, "train") in done:
                    continue
                if missing:
                    yield Row(bench, adapter, storage).cells(missing, __version__)


def problems(record: Path, written: Path) -> list[str]:
    """What is out of date, and the command that renews it; nothing where nothing is."""
    cells = read(record)
    found = []
    names = ADAPTERS.names()
    tried = {(cell.adapter, cell.storage, cell.what): cell for cell in cells}
    missing = [name for name in names if not all(_tried(tried, name, storage) for storage in STORAGES)]
    if missing:
        found.append(
            f"{record.name} lacks {', '.join(missing)}; run scripts/grid.py --adapters {','.join(missing)}"
        )
    if gone := sorted({cell.adapter for cell in cells} - set(names)):
        found.append(f"{record.name} has {', '.join(gone)}, which lrft has not; run scripts/grid.py")
    if any(cell.version != __version__ for cell in cells):
        found.append(f"{record.name} has cells of another version than {__version__}; run scripts/grid.py")
    if faults := [cell for cell in cells if cell.outcome == FAULT]:
        found += [f"{cell.adapter} on {cell.storage}: {cell.what}: {cell.said}" for cell in faults]
    if out_of_date({written: page(cells)}):
        found.append(f"{written.name} is not what {record.name} says; run scripts/grid.py")
    return found


def _tried(tried: dict[tuple[str, str, str], Cell], adapter: str, storage: str) -> bool:
    """Whether all that is quick has been tried; where it does not train, there is nothing more to try."""
    first = tried.get((adapter, storage, "train"))
    return first is not None and (
        not first.trains or all((adapter, storage, what) in tried for what in QUICK)
    )


def read(path: Path) -> list[Cell]:
    """The cells that are recorded."""
    return [Cell(**found) for found in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def write(path: Path, cells: Sequence[Cell]) -> None:
    """A line a cell, in order; the newest of each, and none of adapters that are gone. Whole or not at all."""
    newest = {(cell.adapter, cell.storage, cell.what): cell for cell in cells}
    kept = [cell for cell in newest.values() if cell.adapter in ADAPTERS.names()]
    kept.sort(key=lambda cell: (cell.adapter, STORAGES.index(cell.storage), WHATS.index(cell.what)))
    lines = ",\n".join(json.dumps(cell.record()) for cell in kept)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    os.replace(scratch, path)


def _of(parser: argparse.ArgumentParser, option: str, given: str | None, known: Sequence[str]) -> list[str]:
    """The names that were given, in the order in which they are known; all where none was."""
    names = list(known) if given is None else given.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{option}: there is no {name}{did_you_mean(name, list(known))}")
    return [name for name in known if name in names]


if __name__ == "__main__":
    raise SystemExit(main())
