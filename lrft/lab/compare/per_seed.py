"""A comparison as a flat table, for spreadsheets and plots of one's own."""

from __future__ import annotations

from lrft.lab.compare.record import Comparison


def seeds_table(record: Comparison) -> list[list[object]]:
    """One row an arm and seed, for other programs: what was set, the loss in full precision, what it took."""
    costs = ("trainable", "run_seconds", "peak_memory_bytes")
    rows: list[list[object]] = [["arm", "rank", "rate", "seed", record["metric"], *costs]]
    for arm in record["arms"]:
        taken = [arm["trainable"], arm["run_seconds"], arm["peak_memory_bytes"]]
        for seed, loss in zip(record["seeds"], arm["losses"], strict=True):
            made = [arm["label"], arm["rank"], arm["rate"], seed, loss, *taken]
            rows.append(["" if value is None else value for value in made])
    return rows
