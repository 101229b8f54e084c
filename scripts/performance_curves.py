"""The cost curves of docs/performance.md: what a step takes over length, batch, rank or layers, as plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from generated import table
from performance_words import Record, label, method, over_lora, source, spread, work
from svg_plot import line_plot

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "measured"
AXES = {
    "length": "tokens of a row",
    "batch": "rows of a step",
    "rank": "rank",
    "layers": "decoder layers with an adapter",
}


def curves(found: Sequence[Record]) -> str:
    """The newest curve of each kind and method, as plots and a table."""
    blocks = []
    for (name, what), record in newest_curves(found).items():
        if "memory" in record["result"]["points"][0]:
            blocks.append(costs(name, what, record))
            continue
        points = [point for point in record["result"]["points"] if point["ratio"] is not None]
        rows = []
        for point in points:
            rates = [f"{1e3 / point['tokens_per_second'][side]:.2f}" for side in point["sides"]]
            rows.append((f"{point['x']:g}", *rates, spread(point["ratio"]), str(point["n"])))
        sides = [label(side) for side in points[0]["sides"]]
        heads = (AXES[what], *(f"{side}, ms a token" for side in sides), "ratio: median (least to most)", "n")
        picture = f"![{AXES[what]} against ms a token](measured/{name}.svg)"
        head = f"{work(record)}, {method(points[0]['sides'][0], record)}, {source(record)}:"
        blocks.append(f"{head}\n\n{picture}\n\n{table(heads, rows)}")
    return "\n\n".join(blocks)


def costs(name: str, what: str, record: Record) -> str:
    """A curve with memory beside the times: two plots and a table, LoRA first."""
    points = [point for point in record["result"]["points"] if point["ratio"] is not None]
    ours, lora = points[0]["sides"]
    rows = []
    for point in points:
        rates = [f"{1e3 / point['tokens_per_second'][side]:.2f}" for side in (lora, ours)]
        ratio = spread(over_lora(point["ratio"]))
        sizes = [f"{point['memory'][side] / 2**20:,.0f}" for side in (lora, ours)]
        rows.append((f"{point['x']:g}", *rates, ratio, str(point["n"]), *sizes))
    times = [f"{label(side)}, ms a token" for side in (lora, ours)]
    peaks = [f"{label(side)}, MiB" for side in (lora, ours)]
    heads = (AXES[what], *times, "its time / LoRA's: median (least to most)", "n", *peaks)
    pictures = [
        f"![{AXES[what]} against {unit}](measured/{name}{end}.svg)"
        for unit, end in (("ms a token", ""), ("MiB", "-memory"))
    ]
    head = f"{work(record)}, {method(ours, record)}, {source(record)}:"
    return "\n\n".join([head, *pictures, table(heads, rows)])


def plots(found: Sequence[Record]) -> dict[Path, str]:
    """File -> SVG of every curve that the page shows."""
    drawn = {}
    for (name, what), record in newest_curves(found).items():
        times: dict[str, list[tuple[float, float]]] = {}
        sizes: dict[str, list[tuple[float, float]]] = {}
        for point in record["result"]["points"]:
            for side, rate in point.get("tokens_per_second", {}).items():
                times.setdefault(label(side), []).append((point["x"], 1e3 / rate))
                if "memory" in point:
                    sizes.setdefault(label(side), []).append((point["x"], point["memory"][side] / 2**20))
        drawn[MEASURED / f"{name}.svg"] = line_plot(times, AXES[what], "ms a token")
        if sizes:
            drawn[MEASURED / f"{name}-memory.svg"] = line_plot(sizes, AXES[what], "MiB")
    return drawn


def newest_curves(found: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """Name of its plots and kind of curve -> the last record that has a figure, of each method where it has memory."""
    newest = {}
    for record in found:
        result = record["result"]
        if record["kind"] not in ("train", "curves"):
            continue
        if any(point["ratio"] is not None for point in result.get("points", ())):
            what, adapter = result["curve"], record["settings"]["adapter"]
            newest[what if record["kind"] == "train" else f"{what}-{adapter}", what] = record
    return newest
