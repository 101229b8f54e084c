"""Write the README's table of methods from what the methods declare of themselves.

    python scripts/methods_table.py [--check]

`--check` writes nothing and exits 1 when the table in the README is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lrft.registry.axes import ANALYSES, AXES, FORMATS, TASKS  # noqa: E402
from lrft.registry.registry import Declaration  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


def table() -> str:
    """One Markdown row a method: recipe section, name, what it is, where it comes from."""
    rows = ["| section | name | what it is | source |", "| --- | --- | --- | --- |"]
    for section, registry in {
        **AXES,
        "data.format": FORMATS,
        "eval.tasks": TASKS,
        "analyse": ANALYSES,
    }.items():
        for name in registry.names():
            declared = registry.declared(name)
            cells = (f"`{section}`", f"`{name}`", declared.summary, source(declared))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def source(declared: Declaration) -> str:
    """The docstring's `Source:`, up to its `Departures` or the next paragraph; titles hold colons of their own."""
    found = re.search(r"Source: (.+?)(?=\s+Departures\b[^:]*:|\n\s*\n|\Z)", declared.doc, re.DOTALL)
    return " ".join(found[1].split()).rstrip(".;") if found else ""


def updated(readme: str) -> str:
    """The README with a fresh table between the markers."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{README.name}: the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the table, or only compare it."""
    readme = README.read_text(encoding="utf-8")
    fresh = updated(readme)
    if arguments == ["--check"]:
        if fresh != readme:
            print(
                "README.md: the table of methods is out of date; run scripts/methods_table.py",
                file=sys.stderr,
            )
        return int(fresh != readme)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
