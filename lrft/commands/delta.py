"""`lrft delta`: what fine-tuning added to a model, moved to another base or kept in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.commands.arguments import DTYPES, NewFolder, check_choice
from lrft.commands.bounds import check_option
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence
from lrft.registry.errors import UsageError

if TYPE_CHECKING:
    from lrft.export.delta import Delta

app = typer.Typer(
    no_args_is_help=True, help="What fine-tuning added to a model: taken off, moved, kept in few bits."
)

Folder = Annotated[Path, typer.Argument(help="Folder that `lrft delta diff` or `compress` wrote.")]


@app.command("diff")
def diff_command(
    base: Annotated[str, typer.Argument(help="The base, a folder or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model.")],
    out: NewFolder,
    dtype: Annotated[
        str, typer.Option(help="`float32`, which is exact, or half of it.", metavar="DTYPE")
    ] = "float32",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a base off a model that was fine-tuned from it.

    Example: lrft delta diff base/ tuned/ --out difference/
    """
    from lrft.api.delta.diff import diff

    check_choice("--dtype", dtype, DTYPES)
    silence(quiet)
    record = diff(base, tuned, out, dtype, trust_remote_code)
    result(record, as_json, lambda found: _show(out, found))


@app.command("apply")
def apply_command(
    delta: Folder,
    target: Annotated[str, typer.Argument(help="The model to add it to, a newer base say.")],
    out: NewFolder,
    weight: Annotated[float, typer.Option(help="Of the differences.", metavar="W")] = 1.0,
    dtype: Annotated[
        str | None, typer.Option(help="Of what is written; by default the target's.", metavar="DTYPE")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add it to another model of the same shape, which then is one that anything loads.

    Example: lrft delta apply difference/ newer-base/ --out moved/
    """
    from lrft.api.delta.diff import apply

    check_choice("--dtype", dtype, DTYPES)
    silence(quiet)
    record = apply(delta, target, out, weight, dtype, trust_remote_code)
    result(
        record,
        as_json,
        lambda found: print(
            f"{out}: {found['target']} and {found['weight']} times what {found['tuned']} has beyond {found['base']}, "
            f"in {found['dtype']}"
        ),
    )


@app.command("compress")
def compress_command(
    delta: Folder,
    out: NewFolder,
    ratio: Annotated[
        float, typer.Option(help="Of the 16-bit size, for each layer.", metavar="R", min=1e-4, max=1.0)
    ] = 1 / 16,
    bits: Annotated[
        str | None, typer.Option(help="Bits and columns instead, for every layer.", metavar="8:2,3:32,2:968")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe or run of the base, on whose rows layers are measured.", metavar="RECIPE"),
    ] = None,
    rows: Annotated[int, typer.Option(help="Training rows that are measured on.", min=1)] = 128,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Keep the differences of layers as singular vectors in mixed bits (Delta-CoMe).

    Example: lrft delta compress difference/ --recipe quickstart --out small/
    """
    from lrft.api.delta.compress import compress

    silence(quiet)
    record = compress(delta, out, ratio, _groups(bits), recipe, rows, trust_remote_code)
    result(record, as_json, lambda found: _show(out, found))


def _groups(text: str | None) -> list[tuple[int, int]] | None:
    if text is None:
        return None
    try:
        found = [(int(bits), int(columns)) for bits, columns in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise UsageError(f"--bits {text}: write bits and columns, such as 8:2,3:32,2:968") from None
    if any(bits not in (*range(1, 9), 16) or columns < 1 for bits, columns in found):
        raise UsageError(f"--bits {text}: bits are 1 to 8 or 16, and columns 1 or more")
    check_option("--bits", found)
    return found


def _show(out: Path, record: Delta) -> None:
    print(f"{out}: {record['tuned']} less {record['base']}")
    print(
        f"{record['changed']} of {len(record['shapes'])} parameters changed, by {record['relative_change']:.3g}"
    )
    if "layers" not in record:
        return
    size, whole = record["bytes"], record["bytes_in_16_bits"]
    print(
        f"{len(record['layers'])} layers in {size:,} bytes, {size / whole:.4f} of their 16-bit size, scales included"
    )
    print(f"relative error: {record['relative_error']:.3g}")
    figures: Any = record
    if "kl_mean" in record:
        print(
            f"beside the tuned model: KL divergence {figures['kl_mean']:.3g}, loss difference "
            f"{figures['loss_difference']:+.3g} nats per token"
        )
