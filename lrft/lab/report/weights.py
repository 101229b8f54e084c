"""What was adapted and what became of it: targets, heat maps over layers and modules, spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from lrft.core.in_layer import in_layer
from lrft.lab.report.chart import Band, Chart, Line, draw
from lrft.lab.report.metrics import Point
from lrft.lab.report.read import RunData
from lrft.lab.spectra.record import SiteRecord
from lrft.lab.spectra.table import by_module, cells_of_modules
from lrft.model.sites import matches

LEVELS = 9  # shades of a heat map
SMALL = (270, 170)


@dataclass(frozen=True)
class Table:
    """Heads and rows of text."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class HeatMap:
    """A number for each layer and module; `rows` hold (text, shade from 0 to `LEVELS`), None where there is no site."""

    title: str
    modules: Sequence[str]
    layers: Sequence[int]
    rows: Sequence[Sequence[tuple[str, int] | None]]


@dataclass(frozen=True)
class Weights:
    """What a run's section shows; `note` says what the inspection was of, or why there is none."""

    name: str
    number: int
    note: str
    shares: str
    targets: Table
    modules: Table | None
    maps: Sequence[HeatMap]
    left_out: Mapping[str, str]


def weights_of(number: int, run: RunData) -> Weights:
    """One run's adapted sites, with what `lrft inspect` found where it has looked."""
    found = run.inspection
    sites = [] if found is None else found["sites"]
    heads, *rows = cells_of_modules(found) if found is not None else [[]]
    return Weights(
        run.name,
        number,
        _note(run),
        _shares(run),
        targets_of(run),
        Table(heads, rows) if rows else None,
        [drawn for drawn in _maps(run, sites) if drawn is not None],
        {} if found is None else found["left_out"],
    )


def _note(run: RunData) -> str:
    found = run.inspection
    if found is None:
        return "The weights were not looked at: run lrft inspect on the folder, or lrft report --inspect."
    note = f"The weights of step {found['step']}; angles and intruders are about {found['top']} leading directions, "
    note += f"an intruder is less like any direction of the base than {found['below']:g}."
    if found["step"] != run.metrics.step:
        note += f" The run is at step {run.metrics.step} by now; lrft inspect looks anew."
    return note


def _shares(run: RunData) -> str:
    """What of all matrices was adapted, as the run wrote it down; empty of older runs."""
    shares = run.record.get("matrices")
    if not shares:
        return ""
    beside = f"; {shares['sentence']}" if shares.get("sentence") else ""
    return (
        f"Of the numbers in all matrices {shares['adapted']:.1%} are adapted, and {shares['quantized']:.1%} stored in "
        f"few bits{beside}."
    )


def targets_of(run: RunData) -> Table:
    """Each pattern of adapter.targets with the layers it hit, by module: how many, of what shape, rank and size."""
    adapter = run.recipe.recipe.adapter
    entries = {name: entry for name, entry in run.plan.items() if entry["settings"] is not None}
    if adapter is None or not entries:
        return Table((), ())
    patterns = [adapter.targets] if isinstance(adapter.targets, str) else list(adapter.targets)
    groups: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for name, entry in entries.items():
        pattern = next((one for one in patterns if matches(name, one)), patterns[0])
        groups.setdefault((pattern, _module(name)), []).append(entry)
    heads = ("pattern", "module", "sites", "in", "out", "rank")
    rows = [
        (
            pattern,
            module,
            str(len(of)),
            *(_span(_values(of, key)) for key in ("in_features", "out_features", "rank")),
        )
        for (pattern, module), of in groups.items()
    ]
    return Table(heads, rows)


def _values(entries: Iterable[Mapping[str, object]], key: str) -> list[float]:
    """A number of the sites themselves, or of the adapter's settings there."""
    found = []
    for entry in entries:
        settings = entry["settings"]
        value = entry.get(key) if key in entry or not isinstance(settings, Mapping) else settings.get(key)
        found += [value] if isinstance(value, int | float) else []
    return found


def _span(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _module(name: str) -> str:
    found = in_layer(name)
    return found.rest if found else name


def _maps(run: RunData, sites: Sequence[SiteRecord]) -> list[HeatMap | None]:
    if not sites:
        ranks = {
            (found.number, found.rest): rank
            for name, entry in run.plan.items()
            if (found := in_layer(name)) and (rank := (entry["settings"] or {}).get("rank")) is not None
        }
        return [heat_map("rank, as planned", ranks)]
    return [
        _of_sites("rank that was allocated", sites, lambda site: site["allocated"]),
        _of_sites("effective rank, by entropy", sites, lambda site: site["rank_entropy"]),
        _of_sites("|dW| / |W| in percent", sites, lambda site: _percent(site["relative"])),
        _of_sites(
            "intruder dimensions", sites, lambda site: site["intruders"] and site["intruders"]["count"]
        ),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _of_sites(
    title: str, sites: Sequence[SiteRecord], value: Callable[[SiteRecord], float | None]
) -> HeatMap | None:
    found = {
        (site["layer"], site["module"]): number
        for site in sites
        if site["layer"] is not None and (number := value(site)) is not None
    }
    return heat_map(title, found)


def heat_map(title: str, values: Mapping[tuple[int, str], float]) -> HeatMap | None:
    """Layers down, modules across; shades go from the lowest to the highest value. None where there is none."""
    if not values:
        return None
    modules = list(dict.fromkeys(module for _, module in values))
    layers = sorted({layer for layer, _ in values})
    low, high = min(values.values()), max(values.values())

    def cell(layer: int, module: str) -> tuple[str, int] | None:
        if (value := values.get((layer, module))) is None:
            return None
        return f"{value:.3g}", round(LEVELS * (value - low) / (high - low)) if high > low else 0

    rows = [[cell(layer, module) for module in modules] for layer in layers]
    return HeatMap(title, [module.rpartition(".")[2] for module in modules], layers, rows)


def spectra(runs: Sequence[RunData]) -> list[Chart]:
    """For each module the singular values of the change: the median over layers, in the band of all of them."""
    grouped = [by_module(run.inspection["sites"]) if run.inspection is not None else {} for run in runs]
    charts = []
    for module in dict.fromkeys(module for found in grouped for module in found):
        lines, bands = [], []
        for number, (run, found) in enumerate(zip(runs, grouped, strict=True)):
            columns = _columns([site["values"] for site in found.get(module, ())])
            if columns:
                lines.append(Line(number, run.name, [(i, median(column)) for i, column in columns]))
                bands.append(Band(number, _edge(columns, min), _edge(columns, max)))
        chart = draw(module, lines, unit="component", bands=bands, log=True, size=SMALL)
        charts += [chart] if chart is not None else []
    return charts


def _columns(values: Sequence[Sequence[float]]) -> list[tuple[int, list[float]]]:
    """Component from 1 on -> its value in every layer that has so many."""
    longest = max(map(len, values), default=0)
    return [(i + 1, [one[i] for one in values if len(one) > i]) for i in range(longest)]


def _edge(columns: Sequence[tuple[int, list[float]]], of: Callable[[list[float]], float]) -> list[Point]:
    return [(i, of(column)) for i, column in columns]


def overall(runs: Sequence[RunData]) -> Table | None:
    """One row for each run that was inspected, to compare them by."""
    rows = [
        (
            run.name,
            str(found["step"]),
            "-" if found["relative"] is None else f"{found['relative']:.3g}",
            f"{fmean(site['rank_entropy'] for site in found['sites']):.3g}",
            "-" if found["intruders"] is None else str(found["intruders"]),
        )
        for run in runs
        if (found := run.inspection) is not None
    ]
    return Table(("run", "step", "|dW| / |W|", "mean effective rank", "intruders"), rows) if rows else None
