"""Write docs/tables/: the exact tier counted, the replays that were run, the results of the full tier, a page a table.

    python scripts/tables_page.py [--check]

`--check` writes nothing and exits 1 when a page is out of date. Replays are read from docs/replays/NAME.json, the
records that `lrft reproduce` writes of tables of the scaled tier.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from generated import write_or_check  # noqa: E402
from lrft.lab.models import Models  # noqa: E402
from lrft.lab.runs.report import table_lines  # noqa: E402
from lrft.lab.tables import library  # noqa: E402
from lrft.lab.tables.exact import load  # noqa: E402
from lrft.lab.tables.exact.count import Number, count_table  # noqa: E402
from lrft.lab.tables.exact.report import legend, markdown, tally  # noqa: E402
from lrft.lab.tables.full.table import FullCell, FullTable, load_full  # noqa: E402
from lrft.lab.tables.record import ScaledRecord  # noqa: E402
from lrft.lab.tables.scaled.replay import head_lines  # noqa: E402

FOLDER = ROOT / "docs" / "tables"
PAGE = FOLDER / "index.md"
REPLAYS = ROOT / "docs" / "replays"
HEAD = """# Tables

Published numbers beside those of lrft, written by `python scripts/tables_page.py`, a page a table. Nothing is tuned
to print, and where print and lrft differ for a known reason, both stand there and the reason is given below the
table. [How to write a table](../writing-tables.md).

{tiers}

```bash
lrft reproduce ls
lrft reproduce dora                          # the shares and counts of the DoRA paper
lrft reproduce s6_lora_pro --seeds 10,       # LoRA-Pro's step beside the full gradient, on another seed
lrft reproduce dora_commonsense --dry-run    # what the real runs train, and in how much memory
```

Provenance of a number: {legend}
"""
# Tier -> what it does, what it costs.
COSTS = {
    "[exact](#exact-tier)": (
        "counts parameters and bytes from the modules and the optimizer that training would build, on published "
        "configurations, without weights",
        "seconds; kept by recipe and code",
    ),
    "[scaled](#replays)": (
        "replays a claim on a small model: the rate of every method chosen on one grid, on a seed that no verdict "
        "uses; paired seeds; the criterion stated beforehand; confirmed, not confirmed, refuted or not decidable",
        "minutes to hours on a CPU",
    ),
    "[full](#full-tier)": (
        "trains and scores the published recipe on the real model; `--dry-run` sizes it without weights",
        "a GPU and days",
    ),
}
EXACT = """## Exact tier

Parameters and bytes are counted from the very modules and optimizer that training would build, on published model
configurations.
"""
SCALED = """## Replays

Every method has its rate chosen on the same grid, on a seed that no verdict uses; criteria were stated before the
runs. A verdict is one on the bed that it names. {done} Beds of small pre-trained models are made by `LRFT_DATA=FOLDER
scripts/make_beds`.
"""
FULL = """## Full tier

Published results of the real models, each beside a recipe with the published settings: `lrft reproduce NAME
--dry-run` says what trains and how much memory it takes, `lrft reproduce NAME` trains and scores it.
**None was run here**, so no number of lrft stands in these tables.
"""


def counted() -> dict[str, list[Number]]:
    """Every packaged table of the exact tier by name, with its numbers."""
    models = Models()
    return {name: list(count_table(load.load_table(name), models)) for name in load.names()}


def records() -> list[dict[str, Any]]:
    """The committed records of replays."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(REPLAYS.glob("*.json"))]


def pages(numbers: dict[str, list[Number]]) -> dict[Path, str]:
    """Every page: the index, and one a table."""
    found = {name: markdown(load.load_table(name), ours) for name, ours in numbers.items()}
    found |= {record["name"]: replay(record) for record in records()}
    found |= {name: full(name, table) for name, table in _full().items()}
    return {PAGE: page(numbers)} | {FOLDER / f"{name}.md": text for name, text in found.items()}


def page(numbers: dict[str, list[Number]]) -> str:
    """The index: every table of every tier, with what came out."""
    replays = records()
    exact = [
        (f"[{load.load_table(name).table.title}]({name}.md)", tally(ours)) for name, ours in numbers.items()
    ]
    scaled = [
        (f"[{record['title']}]({record['name']}.md)", record["claim"], record["verdict"])
        for record in replays
    ]
    trained = [(f"[{table.title}]({name}.md)", f"{table.cost}") for name, table in _full().items()]
    tiers = "\n".join(
        table_lines(("tier", "what it does", "cost"), [(tier, *told) for tier, told in COSTS.items()])
    )
    parts = [HEAD.format(legend=legend(), tiers=tiers), EXACT, *table_lines(("table", "numbers"), exact)]
    parts += ["", SCALED.format(done=_not_run(replays)), *table_lines(("replay", "claim", "verdict"), scaled)]
    return "\n".join([*parts, "", FULL, *table_lines(("table", "cost"), trained)]) + "\n"


def _full() -> dict[str, FullTable]:
    return {name: load_full(entry.path) for name, entry in library.packaged(library.FULL).items()}


def replay(record: dict[str, Any]) -> str:
    """One replay: the claim, the verdict and its scale, the criteria, what each arm reached, where it ran."""
    lines = [f"# {record['title']}", "", *head_lines(cast(ScaledRecord, record)), "", *_arms(record), ""]
    lines.append(f"- Seeds {', '.join(map(str, record['seeds']))}; rates {', '.join(_rates(record))}.")
    for one in record["environments"]:
        facts = {**one.get("hardware", {}), **one.get("versions", {}), "git": one.get("git")}
        lines.append(f"- {', '.join(f'{key} {value}' for key, value in facts.items() if value is not None)}")
    return "\n".join(lines) + "\n"


def full(name: str, table: FullTable) -> str:
    """One table of the full tier: published results by row and column, settings, conflicts."""
    heads = [f"{key} ({column.unit})" if column.unit else key for key, column in table.columns.items()]
    codes = [column.provenance for column in table.columns.values()]
    lines = [f"# {table.title}", "", f"{table.paper} `{name}`. Cost: {table.cost}.", ""]
    shown = ["row", *(f"{head} {code}" for head, code in zip(heads, codes, strict=True))]
    rows = [[row.label, *(_published(row.cells.get(key)) for key in table.columns)] for row in table.rows]
    lines += table_lines(shown, rows)
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
    rows = []
    for arm in record["arms"]:
        gap = arm["difference"] or {}
        mean = "diverged" if arm["mean"] is None else f"{arm['mean']:.4f}"
        cells = [arm["label"], f"{arm['rate']:g}", mean, _interval(arm["interval"])]
        more = "" if gap.get("mean") is None else f"{gap['mean']:+.4f}"
        rows.append([*cells, more, _interval(gap.get("interval"), "+")])
    return table_lines(heads, rows)


def _rates(record: dict[str, Any]) -> list[str]:
    return [f"{rate:g}" for rate in record["rates"]]


def _published(cell: FullCell | None) -> str:
    """As printed; the provenance where it is not the column's."""
    if cell is None:
        return ""
    return f"{cell.published:.10g}" + (f" {cell.provenance}" if cell.provenance else "")


def _interval(ends: list[float] | None, sign: str = "") -> str:
    return "" if ends is None else f"[{ends[0]:{sign}.4f}, {ends[1]:{sign}.4f}]"


if __name__ == "__main__":
    raise SystemExit(write_or_check(pages(counted()), sys.argv[1:], [FOLDER]))
