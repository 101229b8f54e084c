"""`lrft combine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import DrawnSeed, HighestRank, LargestError, NewFolder, parse_numbers
from lrft.commands.complete import methods_of
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.combining.record import Combined


def combine_command(
    parents: Annotated[
        list[str], typer.Argument(help="Runs, checkpoints of runs, or PEFT folders, of one base.")
    ],
    out: NewFolder,
    method: Annotated[
        str,
        typer.Option(
            help="How; `lrft methods ls combine` lists them.",
            metavar="NAME",
            autocompletion=methods_of("combine"),
        ),
    ],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method; may be given again.", metavar="KEY=VALUE"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="One number an adapter, with commas between.", metavar="W,...")
    ] = None,
    rank: HighestRank = None,
    error: LargestError = None,
    recipe: Annotated[
        str | None, typer.Option(help="Says base and data; by default the first run's.", metavar="RECIPE")
    ] = None,
    seed: DrawnSeed = 0,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Score it beside its parents and the base.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --eval: only the first so many rows.")
    ] = None,
    curve: Annotated[
        int, typer.Option(help="Score so many points of the line between the models.", min=0, metavar="N")
    ] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make one adapter of several, without training.

    Example: lrft combine runs/a runs/b --method ties --out both/
    """
    from lrft.api.combining.combine import combine
    from lrft.api.combining.record import Settings
    from lrft.registry.errors import UsageError

    if limit is not None and not evaluate:
        raise UsageError("--limit: is of --eval; add --eval, or leave it out")
    silence(quiet)
    advice = "write numbers with commas between, such as 0.5,0.5"
    numbers = None if weights is None else parse_numbers("--weights", weights, advice)
    asked = Settings(_settings(values or []), numbers, rank, error, recipe, seed, evaluate, limit, curve)
    record = combine(parents, out, method, asked, trust_remote_code)
    result(record, as_json, lambda found: _show(out, found))


def _settings(values: list[str]) -> dict[str, object]:
    from lrft.recipe.document import parse
    from lrft.recipe.tree import Place
    from lrft.registry.errors import UsageError

    found: dict[str, object] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {value}: write KEY=VALUE")
        found[name] = parse(text, Place("--set"))[0].plain()
    return found


def _show(out: Path, record: Combined) -> None:
    from lrft.evaluation.report import plain_table

    print(f"{out}: {record['combination']} of {', '.join(str(one['name']) for one in record['parents'])}")
    print(
        f"layers: {len(record['sites'])}, {record['exact_sites']} exact, rank {record['rank']} at most; "
        f"relative error {record['relative_error']:.3g}"
    )
    if "kl_mean" in record:
        print(
            f"written against uncut on {record['rows']} rows: KL divergence {record['kl_mean']:.3g} nats per token"
        )
    if "scores" in record:
        show_table(plain_table(record["scores"]))
    if "curve" in record:
        best = min(record["curve"], key=lambda one: one["loss"])
        print(f"curve: {out}/curve.csv, lowest loss {best['loss']:.4f} at alpha {best['alpha']:.3g}")
