"""Write docs/tables.md: every table of the exact tier, published beside ours.

    python scripts/tables_page.py [--check]

`--check` writes nothing and exits 1 when the page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lrft.tables import load  # noqa: E402
from lrft.tables.count import Models, Number, count_table  # noqa: E402
from lrft.tables.report import legend, markdown  # noqa: E402

PAGE = ROOT / "docs" / "tables.md"
HEAD = """# Tables

Published numbers beside those of lrft, written by `python scripts/tables_page.py`; `lrft reproduce` counts them again.
The exact tier needs no weights: parameters and bytes are counted from the very modules and optimizer that training
would build, on published model configurations. Where print and count differ for a known reason, both stand here and
the reason is given below the table; nothing is tuned to print.

Provenance of a number: {legend}
"""


def counted() -> dict[str, list[Number]]:
    """Every packaged table by name, with its numbers."""
    models = Models()
    return {name: list(count_table(load.load_table(name), models)) for name in load.names()}


def page(numbers: dict[str, list[Number]]) -> str:
    """The whole page."""
    parts = [HEAD.format(legend=legend())]
    parts += [markdown(load.load_table(name), found, level=2) for name, found in numbers.items()]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or only compare it."""
    fresh = page(counted())
    if arguments == ["--check"]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == fresh
        if not current:
            print("docs/tables.md is out of date; run scripts/tables_page.py", file=sys.stderr)
        return int(not current)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
