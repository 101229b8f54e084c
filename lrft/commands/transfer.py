"""`lrft transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lrft.commands.arguments import NewTokens, Seed, Temperature, TopK, TopP
from lrft.commands.complete import recipe_names
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence
from lrft.registry.errors import UsageError

if TYPE_CHECKING:
    from lrft.api.transferring.record import Match, Transferred


def transfer_command(
    run: Annotated[Path, typer.Argument(help="Run whose adapter is moved, or one of its checkpoints.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="RECIPE",
            help="Recipe of the other base and its adapter; its rows are replaced.",
            autocompletion=recipe_names,
        ),
    ],
    out: Annotated[Path, typer.Option(help="A folder, gone on with after a kill; the new run is run in it.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes, of the recipe.")
    ] = None,
    seeds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows that show the task; by default drawn.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="How many seeds are drawn of the run's rows, by default 5.")
    ] = None,
    discriminator: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="That of an earlier transfer; by default one is trained."),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the discriminator's recipe. Repeat for more."),
    ] = None,
    contrast: Annotated[
        int | None,
        typer.Option(
            min=1, help="Inputs of each kind that the discriminator learns from, at most; by default 256."
        ),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Inputs that the other base is asked for.")] = 1000,
    threshold: Annotated[
        float, typer.Option(metavar="P", help="Probability of being real from which an input is accepted.")
    ] = 0.5,
    match: Annotated[
        str,
        typer.Option(metavar="WHAT", help="What is imitated: tokens, text, or auto for the first possible."),
    ] = "auto",
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="How another input is asked for; {examples} are the seeds."),
    ] = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    max_new_tokens: NewTokens = 256,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Move an adapter to another base by inputs that this writes and the run answers (Trans-LoRA).

    Example: lrft transfer runs/small --to large.yaml --out moved
    """
    from lrft.api.transferring.record import Asked
    from lrft.api.transferring.transfer import transfer
    from lrft.evaluation.sampling import Sampling

    silence(quiet)
    _check_used(seeds, shots, discriminator, contrast)
    asked = Asked(
        seeds,
        shots or Asked.shots,
        discriminator,
        judge or (),
        contrast or Asked.contrast,
        candidates,
        threshold,
        cast("Match", match),
        prompt,
        Sampling(temperature, top_p, top_k, seed),
        max_new_tokens,
    )
    found = transfer(run, to, out, asked, overrides=overrides or [], trust_remote_code=trust_remote_code)
    result(found, as_json, _show)


def _check_used(
    seeds: Path | None, shots: int | None, discriminator: Path | None, contrast: int | None
) -> None:
    """Refuse what would change nothing."""
    if seeds is not None and shots is not None:
        raise UsageError(
            f"--shots {shots}: no seeds are drawn where --seeds names them; leave one of them out"
        )
    if discriminator is not None and contrast is not None:
        raise UsageError(
            f"--contrast {contrast}: is of a discriminator that is trained here; leave it out, or --discriminator"
        )


def _show(found: Transferred) -> None:
    pool, judge = found["target"], found["discriminator"]
    if "real" in judge:
        accuracy = judge["held_out"].get("accuracy")
        told = "" if accuracy is None else f", right about {accuracy:.1%} of those held out"
        print(
            f"{judge['run']}: trained on {judge['real']:,} real inputs and {judge['written']:,} written ones{told}"
        )
    refused = ", ".join(f"{count:,} {why}" for why, count in pool["refused"].items())
    print(
        f"candidates: {pool['asked']:,}, {pool['inputs']:,} of them inputs{f' ({refused})' if refused else ''}"
    )
    print(f"accepted: {found['accepted']:,} ({found['acceptance']:.1%}) at threshold {found['threshold']:g}")
    left = ", ".join(f"{count:,} {why}" for why, count in found["outputs"].items())
    print(f"rows: {found['rows']:,}, by {found['imitated']}{f'; outputs left out: {left}' if left else ''}")
    print(f"{found['run']}: step {found['training']['step']}, loss {found['training']['loss']:.4f}")
