"""`lrft plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Overrides, RecipeName
from lrft.commands.counts import add_rows, parameter_rows, recomputed_rows, target_rows
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core import stop
from lrft.core.garbage import sought_rarely
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.planning.ahead import Ahead
    from lrft.api.planning.predict import Predicted

MINUTE, HOUR = 60, 3600


def plan_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option(help="Memory to fit into, as 24GiB; by default the GPU's, or without one the free RAM."),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            help="Short run of the recipe, to predict time and loss from; may be repeated.", metavar="RUN"
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Of an hour, for the cost that --predict says.", metavar="X")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plan the memory of a recipe before anything is downloaded.

    Example: lrft plan quickstart model.name=meta-llama/Meta-Llama-3-8B --device 24GiB
    """
    silence(quiet)
    told: Predicted | None = None
    with stop.at_once(), sought_rarely():
        from lrft.api.planning.ahead import plan_ahead
        from lrft.registry.errors import UsageError

        if price is not None and not predict:
            raise UsageError("--price: a cost is predicted from short runs; add --predict RUN")
        found = plan_ahead(recipe, device, trust_remote_code, overrides=overrides or [])
        if predict:
            from lrft.api.planning.predict import predict as predict_from

            told = predict_from(recipe, predict, price, overrides=overrides or [])
    if told is None:
        result(found, as_json, _show)
        return

    def show(document: object) -> None:
        _show(found)
        _show_predicted(told)

    result({**found, "predicted": told}, as_json, show)


def _show(plan: Ahead) -> None:
    from rich.table import Table

    table = Table("plan", plan["recipe"])
    table.add_row("model", plan["model_source"])
    add_rows(table, [*parameter_rows(plan), *target_rows(plan), *recomputed_rows(plan)])
    table.add_row("peak of training", f"in the {plan['moment']}")
    if plan["rate"] is None:
        table.add_row("time", "no run of this model on this kind of device under runs/, so none is estimated")
    else:
        table.add_row("time", _time(plan))
    show_table(table)
    print()
    _show_peaks(plan)
    print()
    for line in plan["assumes"]:
        print(f"- {line}")
    print()
    _show_fit(plan)


def _show_peaks(plan: Ahead) -> None:
    from rich.table import Table

    table = Table("peak, GiB")
    for name in plan["peaks"]:
        table.add_column(name, justify="right")
    for category in next(iter(plan["peaks"].values())):
        sizes = [peak[category] for peak in plan["peaks"].values()]  # type: ignore[literal-required]
        table.add_row(category.replace("_", " "), *(gib(size) for size in sizes))
    show_table(table)


def _show_fit(plan: Ahead) -> None:
    device, margin = plan["device"], plan["margin"]
    kind = "a GPU" if device["kind"] == "cuda" else "the CPU"
    where = f"{gib(device['bytes'])} GiB of {kind} ({device['source']})"
    if margin >= 0:
        print(f"training fits into {where}, with {gib(margin)} GiB to spare")
    else:
        print(f"training does not fit into {where}: {gib(-margin)} GiB are missing")
        print("no edit that is known here makes it fit" if not plan["edits"] else "edits that make it fit:")
        for edit in plan["edits"]:
            print(f"  {' '.join(edit['overrides'])}")
            print(f"    {gib(edit['total'])} GiB, {gib(edit['margin'])} to spare; {edit['costs']}")
    merges = {"requantize": "merge --requantize", "gguf": "merge --requantize to GGUF"}
    for name, fits in plan["fits"].items():
        if not fits and name != "train":
            print(f"{merges.get(name, name)} does not fit: it takes {gib(plan['peaks'][name]['total'])} GiB")


def _time(plan: Ahead) -> str:
    rate, seconds = plan["rate"], plan["seconds"]
    assert rate is not None
    if seconds is None:
        return f"{rate['tokens_per_second']:,.0f} tokens a second ({rate['source']})"
    units = {"hours": HOUR, "minutes": MINUTE, "seconds": 1}
    name = next(name for name, unit in units.items() if seconds >= 2 * unit or unit == 1)
    shown = f"about {seconds / units[name]:.0f} {name}"
    return f"{shown}, at {rate['tokens_per_second']:,.0f} tokens a second ({rate['source']})"


def gib(size: int) -> str:
    """Bytes in GiB, to two digits."""
    return f"{size / 2**30:,.2f}"


def _show_predicted(found: Predicted) -> None:
    speed, quality = found["speed"], found["quality"]
    cost = "" if found["cost"] is None else f", cost {found['cost']:,.2f}"
    print()
    print(f"predicted: {found['steps']:,} steps in {found['seconds'] / HOUR:.2f} hours{cost}")
    if speed["a"] is None:
        where = f"the median of {', '.join(speed['runs'])}"
    else:
        where = f"{speed['a']:.3g} + {speed['b']:.3g} ln(rows of a step), error {speed['rmse']:.2g}"
    print(f"  {speed['rows_per_second']:.3g} rows a second: {where}")
    interval = f"{quality['low']:.3f} to {quality['high']:.3f}"
    print(f"  {quality['metric']} {quality['loss']:.3f} at the end, 95 % {interval}")
    fitted = f"{quality['floor']:.3f} + A step^-{quality['alpha']:.2g}"
    through = f"through {quality['points']} points of {quality['run']}"
    print(f"  {fitted} {through}, {quality['times_as_far']:.1f} times as far")
    print(
        f"  two thirds of the points said {quality['tried']:.3f} of the last, which is {quality['seen']:.3f}"
    )
