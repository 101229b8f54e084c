"""What a step costs over length, batch, rank and adapted layers: seconds and memory of a method beside lrft's LoRA.

    python scripts/bench_curves.py --adapter dora --record docs/measured/curves.json
    python scripts/bench_curves.py --adapter miss --curves rank,layers --record FILE.json
    python scripts/bench_curves.py --quick               two points of each, one pair, whoever else uses the machine

At every value the two are timed in turn in this process (bench_pairs.py), and each takes `--steps` steps in a process
of its own, whose peak is read (bench_memory.py). The record is written after every point. The same command goes on: a
point that is there with a figure stays, one that other processes disturbed is measured again. A curve is a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_memory import child
from bench_record import leave, made, put, read
from bench_settings import Settings, parser, settings_of
from bench_train import CURVES, REFERENCE, guarded, layers, one
from lrft.registry.errors import UsageError

KIND = "curves"
QUICK = {"pairs": 1, "foreign": float("inf"), "eager": True}
QUICK_POINTS = 2


def main(given: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure the curves that are asked for, one after another; their records.

    Raises:
        UsageError: there is no such curve, or the method is LoRA itself.
        LrftError: a process that measures memory failed.
    """
    made_parser = parser(__doc__)
    made_parser.set_defaults(adapter="dora")
    made_parser.add_argument("--curves", default=",".join(CURVES), help="which, separated by commas")
    made_parser.add_argument("--steps", type=int, default=2, help="of a process that measures memory")
    made_parser.add_argument(
        "--quick", action="store_true", help="to see that it runs; no figure comes of it"
    )
    arguments = made_parser.parse_args(given)
    settings, names = settings_of(arguments), arguments.curves.split(",")
    if odd := [name for name in names if name not in CURVES]:
        raise UsageError(f"--curves {odd[0]}: choose among {', '.join(CURVES)}")
    if settings.adapter == REFERENCE:
        raise UsageError(f"--adapter {REFERENCE}: is what others are beside; name another one")
    if arguments.quick:
        settings = settings.but(**QUICK)
    found = []
    for name in names:
        places = values(settings, name)[: QUICK_POINTS if arguments.quick else None]
        found.append(curve(settings, name, places, arguments.steps, given, arguments.record))
    return found


def values(settings: Settings, name: str) -> list[int]:
    """What a curve goes over; of layers shares of the model's."""
    whole = layers(settings) if name == "layers" else 1
    return sorted({max(1, round(value * whole)) for value in CURVES[name][1]})


def curve(
    settings: Settings,
    name: str,
    places: Sequence[int],
    steps: int,
    given: Sequence[str] | None,
    file: Path | None,
) -> dict[str, Any]:
    """The record of a curve; points that an earlier call left are taken over."""
    asked = made(KIND, settings.record(), {"curve": name, "points": []}, given)
    before = next((record for record in read(file) if same(record, asked)), None)
    known = {point["x"]: point for point in ([] if before is None else before["result"]["points"])}
    points = [known[x] for x in places if x in known and known[x]["ratio"] is not None]
    for x in places:
        if any(point["x"] == x for point in points):
            continue
        print(f"{name} {x}", flush=True)
        there = settings.but(**{CURVES[name][0]: x})
        points.append({"x": x, **one(there, "none")["pairings"][0], "memory": memory(there, steps)})
        points.sort(key=lambda point: point["x"])
        if file is not None:
            put(file, {**asked, "result": {"curve": name, "points": points}}, same)
    return leave(KIND, settings.record(), {"curve": name, "points": points}, given, None)


def memory(settings: Settings, steps: int) -> dict[str, int]:
    """Side -> bytes at most over the steps of a process of its own."""
    methods = (settings.adapter, REFERENCE)
    asked = {"side": "lrft", "keys": None}
    return {f"lrft:{method}": child(settings.but(adapter=method), asked, steps)["step"] for method in methods}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records are of one curve: the same work on the same machine, with the same versions and commit."""
    keys = ("kind", "settings", "hardware", "versions", "git")
    return all(one[key] == other[key] for key in keys) and one["result"]["curve"] == other["result"]["curve"]


if __name__ == "__main__":
    raise SystemExit(guarded(main))
