"""Arguments and options that several commands take: said once, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.complete import recipe_names

RecipeName = Annotated[
    str, typer.Argument(help="Recipe file, or the name of a packaged one.", autocompletion=recipe_names)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value sets, ~key.sub deletes.")]
Run = Annotated[Path | None, typer.Argument(help="Run folder; by default the latest under runs/.")]
Runs = Annotated[Path, typer.Option(help="Folder of runs and report; the same one goes on.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time; with --cluster, queued ones count.")]
KeepCheckpoints = Annotated[
    bool, typer.Option("--keep-checkpoints", help="Of every run, and not its adapter alone.")
]
