"""The page: one HTML file that needs nothing else, readable without scripts, small whatever the runs hold."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from lrft import __version__
from lrft.files.read import open_regular
from lrft.lab.report.curves import curves, thinned, undrawn
from lrft.lab.report.read import RunData
from lrft.lab.report.scores import samples, scores
from lrft.lab.report.settings import differences, machines, recipe_of
from lrft.lab.report.tasks import tasks
from lrft.lab.report.weights import Table, overall, spectra, weights_of
from lrft.lab.spectra.measure import KEPT
from lrft.registry.errors import UsageError

HERE = Path(__file__).parent
LARGEST = 2_000_000  # bytes
COLOURS = 8


@dataclass(frozen=True)
class Detail:
    """How much is shown: points of a curve, samples in all."""

    points: int
    samples: int


DETAILS = (Detail(1000, 24), Detail(500, 16), Detail(250, 8), Detail(120, 4), Detail(60, 0))


def page_of(runs: Sequence[RunData], largest: int = LARGEST) -> str:
    """The page of these runs, with as much detail as `largest` bytes have room for.

    Every text of a run is escaped by the template engine, and a policy in the page allows no script but its own.

    Raises:
        UsageError: so many runs have no room even with the least detail.
    """
    for detail in DETAILS:
        text = _render(runs, detail)
        if len(text.encode()) <= largest:
            return text
    raise UsageError(
        f"{len(runs)} runs make a page of {len(text.encode()) / 1e6:.1f} MB, more than {largest / 1e6:g} MB; name fewer"
    )


def _render(runs: Sequence[RunData], detail: Detail) -> str:
    style, script = _file("page.css"), _file("page.js")
    shown, samples_in_all = samples(runs, detail.samples)
    return _template().render(
        title=", ".join(run.name for run in runs),
        version=__version__,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=runs,
        colours=COLOURS,
        summary=summary(runs),
        differences=differences(runs),
        curves=curves(runs, detail.points),
        thinned=thinned(runs, detail.points),
        undrawn=undrawn(runs),
        weights=[weights_of(number, run) for number, run in enumerate(runs)],
        overall=overall(runs),
        spectra=spectra(runs),
        kept=KEPT,
        scores=scores(runs),
        tasks=tasks(runs),
        samples=shown,
        samples_in_all=samples_in_all,
        recipes=[recipe_of(run) for run in runs],
        machines=machines(runs),
    )


def summary(runs: Sequence[RunData]) -> Table:
    """One row a run: what it was, how far it came and what it cost."""
    heads = (
        "run",
        "state",
        "adapter",
        "steps",
        "loss",
        "held-out loss",
        "trainable",
        "seconds",
        "peak memory",
    )
    rows = []
    for run in runs:
        result, adapter = run.result or {}, run.recipe.recipe.adapter
        total = run.record.get("total_steps")
        rows.append(
            (
                run.name,
                run.state.kind,
                "none" if adapter is None else adapter.method,
                f"{run.metrics.step} of {total}" if total else str(run.metrics.step),
                _number(run.metrics.last("loss"), ".4f"),
                _number(result.get("best_eval_loss", run.metrics.last("eval_loss")), ".4f"),
                _number(run.record.get("trainable"), ",d"),
                _number(result.get("seconds"), ",.1f"),
                _mebibytes(result.get("peak_memory_bytes")),
            )
        )
    return Table(heads, rows)


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def _mebibytes(value: object) -> str:
    return f"{value / 2**20:,.0f} MiB" if isinstance(value, int | float) else "-"


@cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def is_page(path: Path) -> bool:
    """Whether a file begins as every page does, up to the sum of its script.

    Raises:
        DamagedFile: it is no file, or cannot be read.
    """
    text = (HERE / "page.html").read_text(encoding="utf-8")
    head = text[text.index("<!DOCTYPE") : text.index("{{ script_hash }}")].encode()
    with open_regular(path) as file:
        return file.read(len(head)) == head


@cache
def _template() -> Template:
    settings = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, **settings)  # type: ignore[arg-type]
    return environment.get_template("page.html")
