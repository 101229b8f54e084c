"""`lrft merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import DTYPES, Checkpoint, Run, check_choice
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence
from lrft.core.plain import plain

if TYPE_CHECKING:
    from lrft.export.fidelity import Fidelity


def merge_command(
    out: Annotated[Path, typer.Option(help="Folder for the merged model; must be empty or new.")],
    run: Run = None,
    onto: Annotated[
        str | None,
        typer.Option(help="`dequantized`, the base seen in training, or `original`.", metavar="BASE"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Merge only the leading ranks, of adapters whose ranks are nested.", min=1, metavar="K"
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Of an adapter that goes by features of rows: those the merged model is for.",
            metavar="A=B,...",
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="`stochastic`, `nearest` or `feedback`; by default export.rounding.", metavar="HOW"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="`bfloat16`, `float16` or `float32`; by default export.dtype.", metavar="DTYPE"),
    ] = None,
    checkpoint: Checkpoint = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            help="Add what another run or PEFT folder of the same base learnt; may be given again.",
            metavar="RUN",
        ),
    ] = None,
    requantize: Annotated[
        str | None,
        typer.Option(
            help="Storage that merged layers are rounded into, with error feedback; one of GGUF makes a file.",
            metavar="STORAGE",
        ),
    ] = None,
    keep_rank: Annotated[
        int | None,
        typer.Option(
            help="Write what --requantize leaves as an adapter of this rank beside.", min=1, metavar="K"
        ),
    ] = None,
    factors: Annotated[
        bool,
        typer.Option(
            "--factors", help="Write every layer of low rank as two, with the code that loads them."
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge a run's adapter into dense weights, and measure how faithful they are.

    Example: lrft merge --out model/
    """
    from lrft.api.merging.merge import merge

    for option, value, known in (
        ("--onto", onto, ("dequantized", "original")),
        ("--rounding", rounding, ("stochastic", "nearest", "feedback")),
        ("--dtype", dtype, DTYPES),
    ):
        check_choice(option, value, known)
    silence(quiet)
    how = (onto, rank, rounding, dtype, checkpoint, trust_remote_code)
    merged = merge(run, out, *how, add or [], features, requantize, keep_rank, factors)
    result(merged, as_json, _show)


def _show(record: Fidelity) -> None:
    """The figures; what `lrft doctor` compares with later is in the file."""
    later = ("conversation", "stops", "files")
    print(json.dumps(plain({key: value for key, value in record.items() if key not in later}), indent=2))
