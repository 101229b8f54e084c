"""Write docs/tables.md: the exact tier counted, the replays that were run, the results of the full tier.

    python scripts/tables_page.py [--check]

`--check` writes nothing and exits 1 when the page is out of date. Replays are read from docs/replays/NAME.json, the
records that `lrft reproduce` writes of tables of the scaled tier.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lrft.lab.models import Models  # noqa: E402
from lrft.lab.tables import library  # noqa: E402
from lrft.lab.tables.exact import load  # noqa: E402
from lrft.lab.tables.exact.count import Number, count_table  # noqa: E402
from lrft.lab.tables.exact.report import legend, markdown  # noqa: E402
from lrft.lab.tables.full.table import FullCell, FullTable, load_full  # noqa: E402
from lrft.lab.tables.scaled.replay import head_lines  # noqa: E402

PAGE = ROOT / "docs" / "tables.md"
REPLAYS = ROOT / "docs" / "replays"
HEAD = """# Tables

Published numbers beside those of lrft, written by `python scripts/tables_page.py`. Nothing is tuned to print, and where
print and lrft differ for a known reason, both stand here and the reason is given below the table.
[How to write a table](writing-tables.md).

- [Exact tier](#exact-tier): counted without weights; `lrft reproduce` counts them again
- [Replays](#replays): claims replayed by small trainings; `lrft reproduce NAME` trains them again
- [Full tier](#full-tier): results of the real models; none was run here

Provenance of a number: {legend}
"""
EXACT = """## Exact tier

Parameters and bytes are counted from the very modules and optimizer that training would build, on published model
configurations.
"""
SCALED = """## Replays

Every method has its rate chosen on the same grid, on a seed that no verdict uses; criteria were stated before the runs.
A verdict is one on the bed that it names. {done}
"""
FULL = """## Full tier

Published results of the real models, each beside a recipe with the published settings: `lrft reproduce NAME --dry-run`
says what trains and how much memory it takes, `lrft reproduce NAME` trains and scores it. **None was run here**, so no
number of lrft stands in this section.
"""


def counted() -> dict[str, list[Number]]:
    """Every packaged table of the exact tier by name, with its numbers."""
    models = Models()
    return {name: list(count_table(load.load_table(name), models)) for name in load.names()}


def page(numbers: dict[str, list[Number]]) -> str:
    """The whole page."""
    parts = [HEAD.format(legend=legend()), EXACT]
    parts += [markdown(load.load_table(name), found, level=3) for name, found in numbers.items()]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(REPLAYS.glob("*.json"))]
    parts += [SCALED.format(done=_not_run(records)), *map(replay, records), FULL]
    parts += [full(name, load_full(entry.path)) for name, entry in library.packaged(library.FULL).items()]
    return "\n".join(parts)


def replay(record: dict[str, Any]) -> str:
    """One replay: the claim, the verdict and its scale, the criteria, what each arm reached, where it ran."""
    lines = [f"### {record['title']}", "", *head_lines(record), "", *_arms(record), ""]
    lines.append(f"- Seeds {', '.join(map(str, record['seeds']))}; rates {', '.join(_rates(record))}.")
    for one in record["environments"]:
        facts = {**one.get("hardware", {}), **one.get("versions", {}), "git": one.get("git")}
        lines.append(f"- {', '.join(f'{key} {value}' for key, value in facts.items() if value is not None)}")
    return "\n".join(lines) + "\n"


def full(name: str, table: FullTable) -> str:
    """One table of the full tier: published results by row and column, settings, conflicts."""
    heads = [f"{key} ({column.unit})" if column.unit else key for key, column in table.columns.items()]
    codes = [column.provenance for column in table.columns.values()]
    lines = [f"### {table.title}", "", f"{table.paper} `{name}`. Cost: {table.cost}.", ""]
    lines += [_row(["row", *(f"{head} {code}" for head, code in zip(heads, codes, strict=True))])]
    lines += [_row(["---"] * (len(heads) + 1))]
    for row in table.rows:
        lines.append(_row([row.label, *(_published(row.cells.get(key)) for key in table.columns)]))
    told = [
        f"{row.label}, {key}: {cell.conflict}"
        for row in table.rows
        for key, cell in row.cells.items()
        if cell.conflict
    ]
    notes = [*table.settings, *table.notes, *dict.fromkeys(told)]
    return "\n".join([*lines, "", *(f"- {note.rstrip('.')}." for note in notes)]) + "\n"


def _not_run(records: list[dict[str, Any]]) -> str:
    missing = sorted(library.packaged(library.SCALED).keys() - {record["name"] for record in records})
    return f"Not run here: {', '.join(missing)}." if missing else "All packaged ones were run."


def _arms(record: dict[str, Any]) -> list[str]:
    """One row an arm."""
    heads = [
        "arm",
        "rate",
        f"final {record['metric']}",
        "95 %",
        f"difference to {record['arms'][0]['label']}",
        "95 %",
    ]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for arm in record["arms"]:
        gap = arm["difference"] or {}
        mean = "diverged" if arm["mean"] is None else f"{arm['mean']:.4f}"
        cells = [arm["label"], f"{arm['rate']:g}", mean, _interval(arm["interval"])]
        more = "" if gap.get("mean") is None else f"{gap['mean']:+.4f}"
        lines.append(_row([*cells, more, _interval(gap.get("interval"), "+")]))
    return lines


def _rates(record: dict[str, Any]) -> list[str]:
    return [f"{rate:g}" for rate in record["rates"]]


def _published(cell: FullCell | None) -> str:
    """As printed; the provenance where it is not the column's."""
    if cell is None:
        return ""
    return f"{cell.published:.10g}" + (f" {cell.provenance}" if cell.provenance else "")


def _interval(ends: list[float] | None, sign: str = "") -> str:
    return "" if ends is None else f"[{ends[0]:{sign}.4f}, {ends[1]:{sign}.4f}]"


def _row(cells: list[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


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
