"""A comparison as Markdown and JSON, and one plot where there is something to draw it with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lrft.files.made_records import ComparisonRecord
from lrft.lab.compare.per_seed import seeds_table
from lrft.lab.compare.plot import draw
from lrft.lab.compare.record import Comparison
from lrft.lab.compare.sentences import sentences
from lrft.lab.runs.report import check_report, table_lines, write_files
from lrft.training.records import SetUp

STEM = "report"
PLOT = f"{STEM}.png"
MIB = 2**20


def write_report(record: Comparison, out: Path, title: str, head: Sequence[str] = ()) -> Path:
    """Write report.md, report.json, report.csv and, where it can be drawn, report.png; returns report.md.

    Args:
        head: lines that go under the title.

    Raises:
        WriteError: the folder cannot be written.
    """

    def page(pictured: bool) -> list[str]:
        picture = (
            f"![loss by rate and by seed]({PLOT})" if pictured else "No plot: matplotlib is not installed."
        )
        return [f"# {title}", "", *head, *([""] if head else []), *body(record), "", picture, ""]

    return write_files(out, STEM, record, seeds_table(record), lambda path: draw(record, path), page)


def check_place(out: Path) -> None:
    """Refuse a folder in which the report would be written over somebody else's files.

    Raises:
        UsageError: there are such.
    """
    check_report(out, STEM, ComparisonRecord, "a comparison")


def body(record: Comparison) -> list[str]:
    """The sections of the report: losses, rates, what differs, where it ran."""
    return [
        *table(record),
        "",
        *sentences(record),
        "",
        "## Rates",
        "",
        *_grid(record),
        "",
        "## What differs",
        "",
        *_differences(record),
        "",
        "## Where it ran",
        "",
        *_environments(record),
    ]


def table(record: Comparison) -> list[str]:
    """`cells` as Markdown."""
    heads, *rows = cells(record)
    return table_lines(heads, rows)


def cells(record: Comparison) -> list[list[str]]:
    """The heads, and one row an arm: rate, loss, paired difference to the first, costs."""
    heads = [
        "arm",
        "rank",
        "rate",
        f"final {record['metric']}",
        "95 %",
        "difference",
        "95 %",
        "lower at",
        "p",
    ]
    heads += ["trainable", "adapter MiB", "checkpoint MiB", "peak MiB", "seconds", "of steps"]
    rows = [heads]
    for arm in record["arms"]:
        gap = arm["difference"]
        wins = f"{gap['lower']} of {gap['pairs']} seeds" if gap else ""
        shown = [
            arm["label"],
            _plain(arm["rank"]),
            f"{arm['rate']:g}{' (edge)' if arm['rate_at_edge'] else ''}",
        ]
        shown += [_loss(arm["mean"]), _interval(arm["interval"])]
        shown += [
            _signed(gap and gap["mean"]),
            _interval(gap and gap["interval"], "+"),
            wins,
            _p(gap and gap["p"]),
        ]
        shown += [f"{arm['trainable']:,}", _mib(arm["adapter_bytes"]), _mib(arm["checkpoint_bytes"])]
        shown += [_mib(arm["peak_memory_bytes"]), _plain(arm["run_seconds"]), _plain(arm["step_seconds"])]
        rows.append(shown)
    return rows


def _grid(record: Comparison) -> list[str]:
    if record["tuning_seed"] is None:
        return [f"One rate, {record['rates'][0]:g}, for all arms; nothing was tuned."]
    if record["trials"]:
        return _trials(record)
    rows = []
    for arm in record["arms"]:
        cells = [
            f"**{_loss(point['loss'])}**" if point["rate"] == arm["rate"] else _loss(point["loss"])
            for point in arm["grid"]
        ]
        rows.append([arm["label"], *cells])
    return table_lines(["arm", *(f"{rate:g}" for rate in record["rates"])], rows)


def _trials(record: Comparison) -> list[str]:
    """One row a rate, since each arm was tried at its own."""
    rows = []
    for arm in record["arms"]:
        for point in arm["grid"]:
            bold = "**" if point["rate"] == arm["rate"] else ""
            rows.append([arm["label"], f"{point['rate']:g}", f"{bold}{_loss(point['loss'])}{bold}"])
    return table_lines(["arm", "rate", record["metric"]], rows)


def _differences(record: Comparison) -> list[str]:
    found = record["differences"]
    if not found["keys"]:
        return ["Nothing but the rate."]
    rows = [
        [f"`{key}`", *("" if value is None else f"`{json.dumps(value)}`" for value in values)]
        for key, values in found["keys"].items()
    ]
    return table_lines(["key", *found["arms"]], rows)


def _environments(record: Comparison) -> list[str]:
    found = record["environments"]
    lines = [f"The runs were made on {len(found)} set-ups:", ""] if len(found) > 1 else []
    lines += set_ups(found)
    return [*lines, f"- {record['seconds']:g} s for what this call ran"]


def set_ups(found: Sequence[SetUp]) -> list[str]:
    """One line a set-up: versions, hardware, commit."""
    lines = []
    for one in found:
        facts = {**one.get("versions", {}), **one.get("hardware", {}), "git": one.get("git")}
        lines.append(f"- {', '.join(f'{key} {value}' for key, value in facts.items() if value is not None)}")
    return lines


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _loss(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "" if ends is None else f"[{ends[0]:{sign}.4f}, {ends[1]:{sign}.4f}]"


def _mib(size: float | None) -> str:
    return "" if size is None else f"{size / MIB:,.2f}"
