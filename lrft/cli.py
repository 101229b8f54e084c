"""The Typer app. Nothing heavy is imported here: `lrft --help` must answer at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lrft import __version__
from lrft.commands import data, methods, recipes
from lrft.commands.compare import compare_command
from lrft.commands.env import env_command
from lrft.commands.evaluate import eval_command
from lrft.commands.merge import merge_command
from lrft.commands.reproduce import reproduce_command
from lrft.commands.train import train_command
from lrft.core.errors import LrftError

app = typer.Typer(
    name="lrft",
    help="Low-rank fine-tuning of language models, driven by recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("merge")(merge_command)
app.command("compare")(compare_command)
app.command("reproduce")(reproduce_command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(methods.app, name="methods")
app.add_typer(data.app, name="data")
app.command("env")(env_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lrft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Low-rank fine-tuning of language models, driven by recipes."""


def main() -> None:
    """Entry point. Expected failures are one line or a short list on standard error, with their own exit code."""
    try:
        app()
    except LrftError as error:
        for line in str(error).splitlines():
            print(f"error: {line}" if not line.startswith("  ") else line, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
