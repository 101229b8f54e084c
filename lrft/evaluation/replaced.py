"""What is told when a report takes the place of one that scored something else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lrft.core.notes import say
from lrft.registry.json import Json, to_section

OF_THE_SUBJECT = ("checkpoint", "limit", "adapters_enabled", "dtype", "device")
MOST = 5  # differences that are named
LONGEST = 24  # characters of a value that are shown
ABSENT = "absent"


def tell_replaced(path: Path, record: Mapping[str, Json]) -> None:
    """Say what an earlier report at `path` scored otherwise than `record` has it, or that the same gave other scores.

    Nothing is said where there is none, or where it holds the same.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        say(f"{path}: the earlier report cannot be read, and is replaced")
        return
    differences = list(_otherwise(to_section(before), record))
    if differences:
        more = f" and {len(differences) - MOST} more" if len(differences) > MOST else ""
        say(f"{path} replaces scores that were taken otherwise ({'; '.join(differences[:MOST])}{more})")
        return
    scores = list(_between("", _scores(to_section(before)), _scores(record)))
    if scores:
        say(f"{path}: the same was scored before, and gave other numbers ({'; '.join(scores[:MOST])})")


def _otherwise(before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    """What differs in who was scored, on what, and how; of what an older report does not say, nothing."""
    was, found = to_section(before.get("subject")), to_section(now.get("subject"))
    yield from _of_both({k: was[k] for k in OF_THE_SUBJECT if k in was}, found)
    yield from _of_both(to_section(was.get("scored_with")), to_section(found.get("scored_with")))
    old, new = to_section(before.get("tasks")), to_section(now.get("tasks"))
    for task in dict.fromkeys([*old, *new]):
        if task not in new:
            yield f"{task}: not scored now"
        elif task in old:
            yield from _between(f"{task} ", _how(to_section(old[task])), _how(to_section(new[task])))


def _of_both(before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    return _between(
        "", {k: v for k, v in before.items() if k in now}, {k: now[k] for k in before if k in now}
    )


def _how(task: Mapping[str, Json]) -> dict[str, Json]:
    """How many rows a task scored, in which version, and its settings."""
    return {"n": task.get("n"), "version": task.get("version"), **to_section(task.get("settings"))}


def _scores(record: Mapping[str, Json]) -> dict[str, Json]:
    tasks = to_section(record.get("tasks"))
    return {
        f"{task}.{name}": value
        for task in tasks
        for name, value in to_section(to_section(tasks[task]).get("metrics")).items()
    }


def _between(prefix: str, before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        was, found = before.get(key, ABSENT), now.get(key, ABSENT)
        if was != found:
            shown = ("none" if value is None else str(value)[:LONGEST] for value in (was, found))
            yield f"{prefix}{key}: {' -> '.join(shown)}"
