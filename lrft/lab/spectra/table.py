"""An inspection as tables: a row for each kind of layer, the relative norms of all layers, or a row for each site."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from rich.table import Table

from lrft.lab.spectra.record import Angles, Inspection, SiteRecord

HEADS = (
    *("allocated", "rank", "99 %", "effective", "stable", "|dW|/|W|"),
    *("overlap out", "overlap in", "least angle", "intruders"),
)


def headline(found: Inspection) -> str:
    """What was inspected, in one line."""
    where = found["of"] if found["step"] is None else f"{found['of']}, step {found['step']}"
    parts = [f"{where}: {found['method']} on {len(found['sites'])} weights"]
    if found["relative"] is not None:
        parts.append(f"|dW| / |W| = {found['relative']:.3g}")
    if found["intruders"] is not None:
        top = sum(len(site["intruders"]["likeness"]) for site in found["sites"] if site["intruders"])
        parts.append(f"{found['intruders']} intruders in {top} directions")
    return "; ".join(parts)


def of_modules(found: Inspection) -> Table:
    """Means over the layers, one row for each module; intruders are summed."""
    (_, second, *_), *rows = cells_of_modules(found)
    table = _table("module", second)
    for row in rows:
        table.add_row(*row)
    return table


def cells_of_modules(found: Inspection) -> list[list[str]]:
    """The table of modules as plain text, its heads first."""
    rows = [[m, str(len(sites)), *_cells(sites)] for m, sites in by_module(found["sites"]).items()]
    return [["module", "sites", *HEADS], *rows]


def of_sites(found: Inspection) -> Table:
    """One row for each site."""
    table = _table("site", "shape")
    for site in found["sites"]:
        table.add_row(site["site"], " x ".join(map(str, site["shape"])), *_cells([site]))
    return table


def of_layers(found: Inspection) -> Table | None:
    """Relative norms, layers down and modules across; None where no weight is known or no site is in a layer."""
    known = {
        (site["layer"], site["module"]): site["relative"]
        for site in found["sites"]
        if site["layer"] is not None and site["relative"] is not None
    }
    if not known:
        return None
    modules = list(dict.fromkeys(module for _, module in known))
    table = Table("layer", *(module.rpartition(".")[2] for module in modules))
    for column in table.columns:
        column.justify = "right"
    for layer in sorted({layer for layer, _ in known if layer is not None}):
        table.add_row(str(layer), *(_number(known.get((layer, module))) for module in modules))
    return table


def by_module(sites: Iterable[SiteRecord]) -> dict[str, list[SiteRecord]]:
    """Path within a block -> its sites."""
    found: dict[str, list[SiteRecord]] = {}
    for site in sites:
        found.setdefault(site["module"], []).append(site)
    return found


def _table(*first: str) -> Table:
    table = Table(*first, *HEADS)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _cells(sites: list[SiteRecord]) -> list[str]:
    sums = [site["intruders"]["count"] for site in sites if site["intruders"] is not None]
    return [
        _mean(site["allocated"] for site in sites),
        _mean(site["rank"] for site in sites),
        _mean(site["rank_99"] for site in sites),
        _mean(site["rank_entropy"] for site in sites),
        _mean(site["rank_stable"] for site in sites),
        _mean(site["relative"] for site in sites),
        _mean(_overlap(site["output"]) for site in sites),
        _mean(_overlap(site["input"]) for site in sites),
        _mean(_least(site) for site in sites),
        str(sum(sums)) if sums else "-",
    ]


def _overlap(angles: Angles | None) -> float | None:
    return None if angles is None else angles["overlap"]


def _least(site: SiteRecord) -> float | None:
    """The least angle on either side, in degrees."""
    found = [angles["degrees"][0] for angles in (site["output"], site["input"]) if angles is not None]
    return min(found, default=None)


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(fmean(known) if known else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
