"""`lrft data augment`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import (
    NewTokens,
    Overrides,
    RecipeName,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence
from lrft.registry.errors import UsageError

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
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What is asked after a program, {output} being what it printed: solutions that correct themselves.",
        ),
    ] = None,
    stages: Annotated[
        int | None, typer.Option(min=1, help="With --verify: the most programs of a solution, by default 3.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option(help="Run the programs that the model writes, confined; --verify needs it.")
    ] = False,
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
    from lrft.api.asking.correct import STAGES, correct_rows
    from lrft.evaluation.sampling import Sampling

    silence(quiet)
    sampling = Sampling(temperature, top_p, top_k, seed)
    if verify is None:
        _check_alone(allow_code, stages)
        ask = partial(augment_rows, recipe, prompt, out, into, run, times, sampling, max_new_tokens)
    else:
        column = _check_verify(into, allow_code)
        solve = partial(correct_rows, recipe, prompt, verify, out, column, run, times, sampling)
        ask = partial(solve, max_new_tokens, stages or STAGES)
    found = ask(overrides=overrides or [], trust_remote_code=trust_remote_code)
    result(found, as_json, _show)


def _check_alone(allow_code: bool, stages: int | None) -> None:
    if allow_code:
        raise UsageError("--allow-code: no program is run without --verify; leave it out, or name the file")
    if stages is not None:
        raise UsageError(
            f"--stages {stages}: there are none without --verify; leave it out, or name the file"
        )


def _check_verify(into: str | None, allow_code: bool) -> str:
    """The column, where all that it takes is said."""
    if not allow_code:
        raise UsageError(
            "--verify: runs programs that the model writes, confined; add --allow-code to allow it"
        )
    if into is None:
        raise UsageError("--verify: a solution takes the place of a row's answer; add --into with its column")
    return into


def _show(found: Augmented) -> None:
    refused = ", ".join(f"{count:,} {why}" for why, count in found["refused"].items())
    before = f", {found['before']:,} answers there before" if found["before"] else ""
    print(f"{found['out']}: {found['rows']:,} rows{f'; no row of {refused}' if refused else ''}{before}")
