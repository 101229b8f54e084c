"""`lrft export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import HighestRank, LargestError, NewFolder, Run, check_choice
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence
from lrft.export.targets import TARGETS

if TYPE_CHECKING:
    from lrft.export.record import Exported

DTYPES = ("bfloat16", "float16", "float32", "q8_0")


def export_command(
    out: NewFolder,
    target: Annotated[
        str, typer.Option("--for", help=", ".join(f"`{name}`" for name in TARGETS), metavar="TARGET")
    ],
    run: Run = None,
    error: LargestError = None,
    rank: HighestRank = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="`bfloat16`, `float16`, `float32`, or `q8_0` of a merged GGUF; by default that of training.",
            metavar="DTYPE",
        ),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model, for gguf and ollama.")] = False,
    base: Annotated[
        str | None,
        typer.Option("--from", help="What ollama calls the base, to put the adapter on it.", metavar="NAME"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload the folder to the hub, privately.", metavar="OWNER/NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for all to read.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's adapter for another program, and measure how faithful it is.

    Example: lrft export --for vllm --out served/
    """
    from lrft.api.exporting.export import export
    from lrft.api.exporting.form import Options
    from lrft.registry.errors import UsageError

    check_choice("--dtype", dtype, DTYPES)
    if public and push is None:
        raise UsageError("--public: nothing is uploaded; give --push OWNER/NAME too")
    silence(quiet)
    options = Options(error, rank, dtype, merged, base)
    record = export(run, target, out, options, push, public, trust_remote_code)
    result(record, as_json, lambda found: _show(out, found))


def _show(out: Path, record: Exported) -> None:
    from lrft.api.asking.what_next import how_to_serve

    print(f"{out}: {record['target']}, {record.get('method') or 'no'} adapter on {record['base']}")
    sites = record.get("sites")
    if sites:
        print(f"layers: {len(sites)}, {record['exact_sites']} exact, rank {record['rank']} at most")
        print(f"relative error of the change: {record['relative_error']:.3g}")
        worst = max(sites, key=lambda name: sites[name]["error"])
        print(f"worst layer: {worst}, rank {sites[worst]['rank']}, energy kept {sites[worst]['energy']:.4f}")
    if "kl_mean" in record:
        print(f"compared on {record['rows']} rows of {record['rows_from']}:")
        print(
            f"  KL divergence {record['kl_mean']:.3g}, loss difference {record['loss_difference']:+.3g} nats per token"
        )
    for check in record.get("checklist", []):
        print(f"{'ok' if check['passed'] else 'WRONG'}: {check['check']} {check['found']}".rstrip())
    print(f"files: {', '.join(record['files'])}")
    if "pushed" in record:
        print(f"pushed: {record['pushed']}")
    print(f"next: {how_to_serve(out, record)}")
