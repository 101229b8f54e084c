"""`lrft choose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Overrides, RecipeName, RowsSeed
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence
from lrft.registry.errors import UsageError

if TYPE_CHECKING:
    from lrft.api.choosing.record import Choice, Past


def choose_command(
    recipe: RecipeName,
    out: Annotated[
        Path, typer.Option(help="Folder of choice.json and what is measured; the same one goes on.")
    ],
    overrides: Overrides = None,
    base: Annotated[
        list[str] | None,
        typer.Option(help="Base model to look at; may be repeated, by default the recipe's."),
    ] = None,
    shots: Annotated[
        str, typer.Option(help="Numbers of demonstrations to measure.", metavar="N,...")
    ] = "0,1,2,4,8",
    further: Annotated[
        str | None, typer.Option(help="Numbers of demonstrations to predict from those.", metavar="N,...")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Training and held-out rows to look at, at most.")
    ] = 1000,
    questions: Annotated[
        int, typer.Option(min=0, metavar="N", help="That will be asked, for the cost.")
    ] = 1000,
    price: Annotated[
        str | None,
        typer.Option(
            help="Of a million tokens in training and in asking; else floating-point operations.",
            metavar="X,Y",
        ),
    ] = None,
    tradeoff: Annotated[
        float, typer.Option(help="Accuracy, from 0 to 1, that one unit of cost is worth.", metavar="X")
    ] = 0.0,
    past: Annotated[
        list[Path] | None, typer.Option(help="Finished and scored run to calibrate by; may be repeated.")
    ] = None,
    seed: RowsSeed = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose a base and how to adapt it, before paying for it: `lrft choose mine.yaml --out runs/choice`."""
    from lrft.api.choosing.choose import choose

    silence(quiet)
    found = choose(
        recipe,
        out,
        base or (),
        _numbers("--shots", shots),
        _numbers("--further", further) if further is not None else (),
        rows,
        questions,
        price,
        tradeoff,
        past or (),
        seed,
        overrides=overrides or [],
        trust_remote_code=trust_remote_code,
    )
    result(found, as_json, _show)


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise UsageError(f"{option} {text}: write whole numbers with commas between them, as 0,1,2,4")
    return [int(part) for part in parts]


def _show(found: Choice) -> None:
    from rich.table import Table

    shown = Table("base", "strategy", "accuracy", "95 %", "", "cost", "score")
    for one in found["strategies"]:
        interval = f"{one['low']:.3f} to {one['high']:.3f}"
        how = "measured" if one["measured"] else "predicted"
        shown.add_row(
            *(one["base"], one["strategy"], f"{one['accuracy']:.3f}", interval, how),
            *(f"{one['cost']:.4g}", f"{one['score']:.4f}"),
        )
    show_table(shown)
    best = found["strategies"][0]
    rows = f"{found['held_out_rows']:,} held-out rows, {len(found['classes'])} classes"
    print(f"cost of {found['questions']:,} questions, {found['unit']}; {rows}")
    print(f"best: {best['base']}, {best['strategy']}")
    if not found["apart"]:
        print("another one's interval reaches up to it, so these rows do not tell them apart")
    for base, head in found["heads"].items():
        sizes = f"{head['rows'][0]:,} to {head['rows'][-1]:,} rows"
        seen = f"said {head['tried']:.3f} of the last, which is {head['accuracies'][-1]:.3f}"
        print(f"{base}: a head on frozen states of {sizes}; all but the last {seen}")
    for base, shots in found["shots"].items():
        if shots["tried"] is not None:
            last, seen_last = shots["shots"][-1], shots["accuracies"][-1]
            print(
                f"{base}: fewer demonstrations said {shots['tried']:.3f} of {last}, which is {seen_last:.3f}"
            )
    if found["past"] is None:
        print("no --past run says how far fine-tuning is from such a head")
    else:
        _show_past(found["past"])
    for note in found["notes"]:
        print(note)


def _show_past(past: Past) -> None:
    order = "no order" if past["spearman"] is None else f"Spearman {past['spearman']:.2f}"
    left = past["mae_left_out"]
    each = "" if left is None else f", {left:.3f} each calibrated by the others"
    print(f"{len(past['runs'])} past runs: {order}, mean error {past['mae']:.3f}{each}")
    print(f"  fine-tuning = {past['shift']:+.3f} {past['slope']:+.3f} * the head's accuracy")
