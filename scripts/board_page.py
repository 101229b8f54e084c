"""docs/methods/board.md and its plots as text, from the lines that `scripts/board.py` recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from generated import plain, table
from svg_plot import point_plot

PAGE, MEMORY, TIME = "board.md", "board-memory.svg", "board-time.svg"
NOT_RUN = "not run yet"
HEADS = (
    *("method", "base", "rate", "exact match", "held-out loss", "step / LoRA"),
    *("peak memory, MiB", "trained numbers", "adapter, KiB"),
)
HEAD = """# Board

Written by `python scripts/board.py` from `board.jsonl`, one line a run. Every method of six axes on the task of the
[quickstart](../quickstart.md): 600 rows, SmolLM2-135M, 54 steps, NF4 where the method goes on it. What a method needs
beside it is as in its smoke recipe, its own settings are its defaults (`*`: those of its smoke recipe, ranks and steps
grown to the task, as the defaults do not fit into so short a run), adapters have rank 16 and go on all linear layers.
The rate is the best of three, a factor of three apart, on a seed of its own; `!` is one at the edge of the three. Exact
match and held-out loss are of two seeds, which show no more than large differences. A step is timed in turn with LoRA's
in one process. Peak memory is that of the runs that tried rates, which answer no row: answers take more than steps.

{done} of {all} methods have both seeds here{version}.

"""

Line = dict[str, Any]


def files(lines: Sequence[Line], keys: Sequence[str], version: str) -> dict[str, str]:
    """File name -> content: the page, and two plots where something was measured."""
    rows = {key: Row([x for x in lines if x["key"] == key and x["version"] == version]) for key in keys}
    found = {}
    for name, label, values in (
        (MEMORY, "peak memory, MiB", {key: row.memory for key, row in rows.items()}),
        (TIME, "time of a step / LoRA", {key: row.ratio for key, row in rows.items()}),
    ):
        points = {
            key.partition("=")[2]: (x, loss)
            for key, x in values.items()
            if x is not None and (loss := rows[key].loss) is not None
        }
        if points:
            found[name] = point_plot(points, label, "held-out loss")
    return {PAGE: page(rows, version, list(found)), **found}


class Row:
    """What was found of one method."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.tried = sorted({x["rate"] for x in lines if x["kind"] == "tune"})
        self.scores = [x for x in lines if x["kind"] == "score"]
        self.timed = next((x for x in reversed(lines) if x["kind"] == "time"), None)
        self.refused = next((x for x in lines if x["kind"] == "refused"), None)
        self.loss = _mean(self.scores, "loss")
        # Answers take more memory than steps: three times as much of the quickstart's, in batches of 8,192 tokens.
        alone = [x for x in lines if x["kind"] == "tune"] or self.scores
        self.memory = None if not self.scores else _most(alone, "peak_memory_bytes", 2**20)
        self.ratio = None if self.timed is None else self.timed["ratio"]

    @property
    def whole(self) -> bool:
        """Whether both seeds were scored."""
        return len(self.scores) == 2

    def cells(self) -> list[str]:
        """Without the name; what is missing is said."""
        if self.refused is not None:
            return [plain(f"refused: {self.refused['said']}"), *[""] * (len(HEADS) - 2)]
        if not self.scores:
            some = f"{NOT_RUN} ({len(self.tried)} of 3 rates tried)" if self.tried else NOT_RUN
            return [some, *[""] * (len(HEADS) - 2)]
        first = self.scores[0]
        base = f"{first['storage']}{'*' if first['settings'] == 'smoke' else ''}"
        rate = f"{first['rate']:.2g}{'!' if first['rate'] in (self.tried[:1] + self.tried[-1:]) else ''}"
        return [
            base.replace("*", "\\*"),
            rate,
            self._seeds("exact_match", 2),
            self._seeds("loss", 3),
            *self._costs(),
        ]

    def _seeds(self, key: str, digits: int) -> str:
        told = ["diverged" if x[key] is None else f"{x[key]:.{digits}f}" for x in self.scores]
        return ", ".join([*told, *[NOT_RUN] * (2 - len(told))])

    def _costs(self) -> list[str]:
        step = NOT_RUN if self.timed is None else self.timed.get("said", "")
        step = step if self.ratio is None else f"{self.ratio:.2f}{self._seconds()}"
        trained, adapter = (
            _most(self.scores, key, unit) for key, unit in (("trainable", 1), ("adapter_bytes", 2**10))
        )
        return [step, *("" if x is None else f"{x:,.0f}" for x in (self.memory, trained, adapter))]

    def _seconds(self) -> str:
        """Medians of the method's step and of LoRA's beside it, which on another day are other ones."""
        seconds = None if self.timed is None else self.timed.get("seconds")
        return "" if not seconds else f" ({seconds[0]:.2f} and {seconds[1]:.2f} s)"


def page(rows: Mapping[str, Row], version: str, plots: Sequence[str]) -> str:
    """A table an axis."""
    done = sum(row.whole for row in rows.values())
    under = f", under lrft {version}" if done else ""
    parts = [HEAD.format(done=done, all=len(rows), version=under).rstrip("\n"), ""]
    for name, alt in ((MEMORY, "held-out loss and peak memory"), (TIME, "held-out loss and time of a step")):
        if name in plots:
            parts += [f"![{alt}]({name})", ""]
    for axis, keys in groupby(
        sorted(rows, key=lambda key: key.partition("=")[0]), lambda key: key.partition("=")[0]
    ):
        told = [(f"`{key.partition('=')[2]}`", *rows[key].cells()) for key in keys]
        parts += [f"## {axis}", "", table(HEADS, told), ""]
    return "\n".join(parts)


def _mean(lines: Sequence[Line], key: str) -> float | None:
    """Of the runs that did not diverge; None where one did."""
    values = [x[key] for x in lines]
    return fmean(values) if values and None not in values and all(map(math.isfinite, values)) else None


def _most(lines: Sequence[Line], key: str, unit: int) -> float | None:
    values = [x[key] for x in lines if x.get(key) is not None]
    return max(values) / unit if values else None
