"""`lrft reproduce ls`: every table with what it costs and what it last said. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lrft.files.json import read_object
from lrft.lab.tables.exact.schema import TableFile
from lrft.lab.tables.library import EXACT, Entry, packaged
from lrft.registry.errors import DamagedFile, LrftError, MissingFile
from lrft.registry.json import Json, to_list


def listing(out: Path) -> list[tuple[str, str, int, str, str]]:
    """Name, tier, rows (or arms), cost and last verdict of every packaged table.

    The cost is the wall time of the last run in `out`, or what the table states.

    Raises:
        LrftError: what `out` holds of a table is no record.
    """
    found = []
    for entry in packaged().values():
        plain, last = entry.plain(), _last(out / f"{entry.name}.json")
        cost = f"{last['seconds']:g} s" if "seconds" in last else stated_cost(entry, plain)
        rows = len(to_list(plain.get("rows") or plain.get("arms")))
        found.append((entry.name, entry.tier, rows, cost, said(last) or "not run yet"))
    return found


def said(record: Mapping[str, object]) -> str:
    """The verdict of a record: its one, or how many of its numbers got which."""
    if "verdict" in record:
        return str(record["verdict"])
    verdicts = record.get("verdicts")
    found = verdicts.items() if isinstance(verdicts, dict) else ()
    return ", ".join(f"{count} {verdict}" for verdict, count in found)


def stated_cost(entry: Entry, plain: Mapping[str, Json]) -> str:
    """What the table says that it costs."""
    default = TableFile.model_fields["cost"].default if entry.tier == EXACT else "not stated"
    return str(plain.get("cost") or default)


def _last(path: Path) -> dict[str, Json]:
    try:
        return read_object(path)
    except MissingFile:
        return {}
    except DamagedFile as error:
        raise LrftError(f"{path}: is no record of a table ({error.problem}); remove it") from None
