"""The curves of a training, those of several runs on shared axes."""

from __future__ import annotations

from collections.abc import Sequence

from lrft.lab.report.chart import Chart, Line, draw
from lrft.lab.report.metrics import thin
from lrft.lab.report.read import RunData

# Title of a chart -> the columns in it, with how each is drawn.
CHARTS = {
    "loss (nats per token)": {"loss": "line", "eval_loss": "dots"},
    "learning rate": {"lr": "line"},
    "gradient norm before clipping": {"grad_norm": "line"},
    "tokens per second": {"tokens_per_second": "line"},
}
LABELS = {"loss": "training", "eval_loss": "held out"}
# What is drawn above under another name, or grows evenly whatever happens.
APART = {"eval_perplexity", "seconds", "tokens", "targets", "epoch", "step"}
MOST_OTHERS = 12


def lines_of(runs: Sequence[RunData], columns: dict[str, str], most: int) -> list[Line]:
    """The curves of one chart, each with at most about `most` points."""
    return [
        Line(number, f"{run.name}{_kind(column, columns)}", thin(run.metrics.columns[column], most), kind)
        for number, run in enumerate(runs)
        for column, kind in columns.items()
        if column in run.metrics.columns
    ]


def charts_of(runs: Sequence[RunData]) -> dict[str, dict[str, str]]:
    """Every chart that these runs have something for: the known ones, then the first columns of their methods' own."""
    return CHARTS | {column: {column: "line"} for column in _others(runs)[:MOST_OTHERS]}


def undrawn(runs: Sequence[RunData]) -> list[str]:
    """The columns that there is no chart of, there being too many."""
    return _others(runs)[MOST_OTHERS:]


def _others(runs: Sequence[RunData]) -> list[str]:
    known = APART | {column for columns in CHARTS.values() for column in columns}
    return list(dict.fromkeys(key for run in runs for key in run.metrics.columns if key not in known))


def curves(runs: Sequence[RunData], most: int) -> list[Chart]:
    """The charts that have a point."""
    drawn = (draw(title, lines_of(runs, columns, most)) for title, columns in charts_of(runs).items())
    return [chart for chart in drawn if chart is not None]


def thinned(runs: Sequence[RunData], most: int) -> str:
    """What a reader is told of curves that are not whole; empty where all are."""
    longest = max((len(points) for run in runs for points in run.metrics.columns.values()), default=0)
    if longest <= most:
        return ""
    return (
        f"Of {longest:,} steps about {most:,} points are drawn: the lowest and the highest of every stretch, so "
        "that no spike is lost."
    )


def _kind(column: str, columns: dict[str, str]) -> str:
    return f", {LABELS[column]}" if len(columns) > 1 else ""
