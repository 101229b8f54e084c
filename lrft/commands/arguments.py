"""Arguments and options that several commands take: said once, so that they read the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.bounds import check_option
from lrft.commands.complete import recipe_names
from lrft.registry.errors import UsageError

RecipeName = Annotated[
    str, typer.Argument(help="Recipe file, or the name of a packaged one.", autocompletion=recipe_names)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes.")]
Run = Annotated[Path | None, typer.Argument(help="Run folder; by default the latest under runs/.")]
Checkpoint = Annotated[
    str | None, typer.Option(help="`best`, `last` or `step-N`; by default the last one.", metavar="WHICH")
]

# What is written.
NewRun = Annotated[Path | None, typer.Option(help="Run folder; by default a new one under runs/.")]
NewFolder = Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")]
HighestRank = Annotated[int | None, typer.Option(help="Highest rank of a layer.", min=1, metavar="R")]
LargestError = Annotated[
    float | None,
    typer.Option(help="Largest relative error of a layer's change; the rank follows.", min=0.0, metavar="E"),
]

# Several runs at a time.
Runs = Annotated[Path, typer.Option(help="Folder of runs and report; the same one goes on.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time; with --cluster, queued ones count.")]
KeepCheckpoints = Annotated[
    bool, typer.Option("--keep-checkpoints", help="Of every run, and not its adapter alone.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Submit the runs: `slurm`, `ray`, or `local` for jobs on this machine.", metavar="NAME"
    ),
]
ClusterSet = Annotated[
    list[str] | None,
    typer.Option(
        help="Of every job, as submitit's update_parameters names it: timeout_min=240, gpus_per_node=1, "
        "mem_gb=32, slurm_partition=gpu; or as Ray names it of a task: num_cpus=4, num_gpus=1, and address. "
        "Repeat for more.",
        metavar="KEY=VALUE",
    ),
]

# What is drawn.
RowsSeed = Annotated[int, typer.Option(min=0, help="Of rows that are drawn.")]
DrawnSeed = Annotated[int, typer.Option(min=0, help="Of what is drawn.")]

# How a model answers.
Temperature = Annotated[
    float,
    typer.Option(help="Divides the logits before a token is drawn; 0 takes the likeliest.", metavar="T"),
]
TopP = Annotated[
    float, typer.Option(help="Draw from the fewest tokens with so much probability.", metavar="P")
]
TopK = Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 is all.", metavar="K")]
Seed = Annotated[int, typer.Option(help="Another seed, other draws.")]
NewTokens = Annotated[int, typer.Option(help="Longest answer.", metavar="N")]

DTYPES = ("bfloat16", "float16", "float32")


def check_choice(option: str, given: str | None, known: Sequence[str]) -> None:
    """Refuse a word that is none of `known`; None is an option that was left out.

    Raises:
        UsageError: names the option and what it takes.
    """
    if given is not None and given not in known:
        raise UsageError(f"{option} {given}: choose {', '.join(known[:-1])} or {known[-1]}")


def parse_numbers(option: str, given: str, advice: str) -> list[float]:
    """The numbers of an option, with commas between.

    Raises:
        UsageError: one is no number, and it says `advice`; or one is beyond what is meant.
    """
    try:
        found = [float(part) for part in given.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise UsageError(f"{option} {given}: {advice}")
    check_option(option, found)
    return found
