"""Write `docs/reliability.md` from what `scripts/reliability.py` recorded; with `--check` say if it is current."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from generated import ROOT, plain, table, with_block, write_or_check
from reliability import KINDS, PACKAGES, RECORD, read

PAGE = ROOT / "docs" / "reliability.md"


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    return write_or_check(fresh(), arguments)


def fresh() -> dict[Path, str]:
    """The page with the table of what the record holds."""
    before = PAGE.read_text(encoding="utf-8")
    return {PAGE: with_block(before, "counts", counts(read(RECORD)["checks"]))}


def counts(checks: dict[str, Any]) -> str:
    """A row a check, and the versions that they hold for."""
    rows = []
    for name, kind in KINDS.items():
        found = checks.get(name)
        if found is None:
            rows.append([kind.rule, plain(kind.what), "not yet", "", ""])
            continue
        whole = "" if found["n"] >= kind.full else f" of {kind.full:,}"
        facts = ", ".join(f"{key} {value:.3g}" for key, value in sorted(found["facts"].items()))
        held = f"{found['held']:,} of {found['tried']:,}"
        rows.append([kind.rule, plain(kind.what), f"{found['n']:,}{whole}", held, facts, found["date"]])
    heads = ["rule", "what", "faults", "held", "measured", "day"]
    found = next(iter(checks.values()), None)
    on = "" if found is None else ", ".join(f"{p} {found[p]}" for p in ("python", *PACKAGES))
    lines = [table(heads, [[*row, ""][: len(heads)] for row in rows])]
    return "\n\n".join([*lines, f"Counted with {on}."] if on else lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
