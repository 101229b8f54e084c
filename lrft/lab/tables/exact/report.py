"""What was counted, as Markdown and JSON."""

from __future__ import annotations

from collections import Counter

from lrft.lab.tables.exact.count import ABSENT, Number
from lrft.lab.tables.exact.load import LoadedTable
from lrft.lab.tables.file import PROVENANCE
from lrft.lab.tables.record import ExactRecord, Facts


def markdown(loaded: LoadedTable, numbers: list[Number], level: int = 1) -> str:
    """The table with published, ours, difference and verdict; without times, so that it can be kept."""
    table = loaded.table
    lines = [f"{'#' * level} {table.title}", "", f"{table.paper} Tier: {table.tier}. {tally(numbers)}", ""]
    lines += ["| row | column | published | | ours | difference | verdict |", "|---|---|---|---|---|---|---|"]
    for number in numbers:
        column = table.columns[number.column]
        unit = f" ({column.unit})" if column.unit else ""

        def shown(value: float | None, digits: int = column.digits) -> str:
            return "" if value is None else f"{value:,.{digits}f}"

        gap = "" if number.difference is None else f"{number.difference:+,.{column.digits}f}"
        lines.append(
            f"| {_cell(number.row)} | {_cell(number.column + unit)} | {_exact(number.published)} | {number.provenance} "
            f"| {shown(number.ours)} | {gap} | {number.verdict} |"
        )
    notes = [f"{n.row}, {n.column}: {n.conflict}." for n in numbers if n.conflict]
    if notes or table.notes:
        lines += ["", *(f"- {text}" for text in (*table.notes, *dict.fromkeys(notes)))]
    return "\n".join(lines) + "\n"


def record(loaded: LoadedTable, numbers: list[Number], facts: Facts) -> ExactRecord:
    """Plain values for NAME.json."""
    return {
        "name": loaded.name,
        "title": loaded.table.title,
        "paper": loaded.table.paper,
        "tier": loaded.table.tier,
        "verdicts": dict(Counter(number.verdict for number in numbers)),
        "numbers": [number.record() for number in numbers],
        **facts,
    }


def where_it_ran(facts: Facts) -> str:
    """Versions, hardware, commit and wall time, as the end of a table's page."""
    named = {**facts["versions"], **facts["hardware"], "git": facts["git"]}
    shown = ", ".join(f"{key} {value}" for key, value in named.items() if value is not None)
    kept = f", {facts['rows_kept']} rows from a run before" if facts["rows_kept"] else ""
    return f"\n## Where it ran\n\n- {shown}\n- {facts['seconds']:g} s{kept}\n"


def tally(numbers: list[Number]) -> str:
    """How many numbers got which verdict, as in `12 equal, 1 conflict`."""
    found = Counter(number.verdict for number in numbers)
    order = [verdict for verdict in ("missed", "equal", "conflict", ABSENT) if verdict in found]
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in order) + "."


def legend() -> str:
    """What the provenance codes mean."""
    return "; ".join(f"**{code}** {meaning}" for code, meaning in PROVENANCE.items()) + "."


def _exact(value: float) -> str:
    """As printed: no digits beyond those the number has."""
    return f"{int(value):,}" if value == int(value) else f"{value:,.10g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
