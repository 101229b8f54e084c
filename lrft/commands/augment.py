"""`lrft data augment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import Overrides, RecipeName
from lrft.commands.generate import NewTokens, Seed, Temperature, TopK, TopP
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.asking.augment import Augmented


def augment_command(
    recipe: RecipeName,
    prompt: Annotated[
        Path, typer.Option(metavar="FILE", help="The question about a row; {NAME} is its column NAME.")
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl file of the new rows; gone on with after a kill.")],
    overrides: Overrides = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="What an answer replaces; without it, an answer is a row in JSON."
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run that is asked; by default the base model.")] = None,
    times: Annotated[int, typer.Option(min=1, help="Answers to each row.")] = 1,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    max_new_tokens: NewTokens = 256,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a model write rows from those of a recipe.

    Example: lrft data augment quickstart --prompt ask.txt --into question --out more.jsonl
    """
    from lrft.api.asking.augment import augment_rows
    from lrft.evaluation.sampling import Sampling

    silence(quiet)
    found = augment_rows(
        recipe,
        prompt,
        out,
        into,
        run,
        times,
        Sampling(temperature, top_p, top_k, seed),
        max_new_tokens,
        overrides=overrides or [],
        trust_remote_code=trust_remote_code,
    )
    result(found, as_json, _show)


def _show(found: Augmented) -> None:
    refused = ", ".join(f"{count:,} {why}" for why, count in found["refused"].items())
    before = f", {found['before']:,} answers there before" if found["before"] else ""
    print(f"{found['out']}: {found['rows']:,} rows{f'; no row of {refused}' if refused else ''}{before}")
