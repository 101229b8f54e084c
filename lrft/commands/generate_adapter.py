"""`lrft generate-adapter`: adapters that are drawn and not trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import DrawnSeed, NewFolder
from lrft.commands.complete import methods_of
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result, show_table
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.generating.draw import Drawn
    from lrft.api.generating.fit import Fitted
    from lrft.api.generating.judge import Judged

app = typer.Typer(
    no_args_is_help=True,
    help="Adapters that are drawn and not trained, by a generator fitted on trained ones.",
)


@app.command("fit")
def fit_command(
    library: Annotated[
        list[str], typer.Argument(help="Runs, each a task; of adapters of PEFT FOLDER=RECIPE.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="NAME, or '{method: NAME, ...}'; `lrft methods ls generate` lists them.",
            metavar="NAME",
            autocompletion=methods_of("generate"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the generator; one that was begun is gone on with.")],
    describe: Annotated[
        list[str] | None,
        typer.Option(help="What a task is, for a generator that reads texts.", metavar="TASK=TEXT"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the start, and of what is drawn.", min=0)] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a generator on the adapters of known tasks; the same command goes on with one that was stopped.

    Example: lrft generate-adapter fit runs/a runs/b runs/c --method icm_lora --out generator/
    """
    from lrft.api.generating.fit import fit

    silence(quiet)
    found = fit(library, out, method, _texts(describe or []), seed, trust_remote_code)
    result(found, as_json, _show_fitted)


@app.command("draw")
def draw_command(
    generator: Annotated[Path, typer.Argument(help="Folder that `fit` wrote.")],
    task: Annotated[str, typer.Argument(help="Recipe, or run, that says base and data of the new task.")],
    out: NewFolder,
    describe: Annotated[
        str | None, typer.Option(help="What the task is, for a generator that reads texts.", metavar="TEXT")
    ] = None,
    seed: DrawnSeed = 0,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Score it beside this run of the task, the mean of the library and a random one.",
            metavar="RUN",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="With --judge: adapters of so many seeds.", min=1)] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --judge: only the first so many rows.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw an adapter for a task, as a run that nobody trained.

    Example: lrft generate-adapter draw generator/ new-task.yaml --out drawn/
    """
    from lrft.api.generating.draw import draw

    silence(quiet)
    record = draw(generator, task, out, describe, seed, judge, draws, limit, trust_remote_code)
    result(record, as_json, _show_drawn)


def _texts(given: list[str]) -> dict[str, str]:
    from lrft.registry.errors import UsageError

    found = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not name or not equals or not text.strip():
            raise UsageError(f"--describe {word}: write TASK=TEXT")
        if name in found:
            raise UsageError(f"--describe {word}: {name} is described twice; leave one of the texts out")
        found[name] = text
    return found


def _show_fitted(found: Fitted) -> None:
    samples = ", ".join(f"{name} {count}" for name, count in found["samples"].items())
    print(f"{found['out']}: {found['generator']}, step {found['step']} of {found['steps']}")
    print(f"{found['numbers']:,} numbers an adapter, {found['parameters']:,} parameters; adapters: {samples}")
    if found["loss"] is not None:
        print(f"loss of the last step: {found['loss']:.4g}")


def _show_drawn(found: Drawn) -> None:
    print(f"{found['out']}: drawn by {found['generator']}, seed {found['seed']}")
    print(f"layers: {found['sites']}, rank {found['rank']} at most, norm of the change {found['norm']:.4g}")
    if "judged" in found:
        _show_judged(found["judged"])


def _show_judged(found: Judged) -> None:
    from rich.table import Table

    table = Table("adapter", "loss", "generated less this", "95 %")
    table.add_row("generated", f"{found['loss']:.4f}", "", "")
    for name, one in found["beside"].items():
        low, high = one["interval"]
        table.add_row(name, f"{one['loss']:.4f}", f"{one['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}")
    show_table(table)
    if len(found["draws"]) > 1:
        low, high = min(found["draws"]), max(found["draws"])
        print(f"{len(found['draws'])} draws: loss from {low:.4f} to {high:.4f}")
    if found["recovered"] is not None and found["recovered_interval"] is not None:
        low, high = found["recovered_interval"]
        print(f"of what training gained it has {found['recovered']:.0%}, 95 % from {low:.0%} to {high:.0%}")
    for line in found["words"]:
        print(line)
