"""The Typer app. Nothing heavy is imported here: `lrft --help` must answer at once."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from errno import ENAMETOOLONG
from typing import Annotated, Any

import typer

from lrft import __version__
from lrft.commands import data, delta, generate_adapter, methods, recipes
from lrft.commands.bounds import bound
from lrft.commands.chat import chat_command
from lrft.commands.choose import choose_command
from lrft.commands.combine import combine_command
from lrft.commands.compare import compare_command
from lrft.commands.doctor import doctor_command
from lrft.commands.env import env_command
from lrft.commands.evaluate import eval_command
from lrft.commands.export import export_command
from lrft.commands.federate import federate_command
from lrft.commands.find_lr import find_lr_command
from lrft.commands.generate import generate_command
from lrft.commands.inspect import inspect_command
from lrft.commands.merge import merge_command
from lrft.commands.output import OneDocument, asks_for_json
from lrft.commands.plan import plan_command
from lrft.commands.posterior import posterior_command
from lrft.commands.report import report_command
from lrft.commands.reproduce import reproduce_command
from lrft.commands.search import search_command
from lrft.commands.serve import serve_command
from lrft.commands.sweep import sweep_command
from lrft.commands.train import train_command
from lrft.commands.transfer import transfer_command
from lrft.core import stop
from lrft.core.notes import draw_only_on_a_terminal, is_lead, restored
from lrft.registry.errors import LrftError, UsageError
from lrft.registry.secrets import masked

INTERRUPTED = 128 + signal.SIGINT  # what typer makes of a Ctrl-C
MISUSE: Any = typer.BadParameter.__base__  # of a missing argument, an unknown option, a bad value

app = typer.Typer(
    name="lrft",
    help="Low-rank fine-tuning of language models, driven by recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train_command)
app.command("federate")(federate_command)
app.command("plan")(plan_command)
app.command("eval")(eval_command)
app.command("posterior")(posterior_command)
app.command("chat")(chat_command)
app.command("serve")(serve_command)
app.command("generate")(generate_command)
app.command("merge")(merge_command)
app.command("combine")(combine_command)
app.command("transfer")(transfer_command)
app.command("export")(export_command)
app.command("doctor")(doctor_command)
app.command("inspect")(inspect_command)
app.command("report")(report_command)
app.command("find-lr")(find_lr_command)
app.command("choose")(choose_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("search")(search_command)
app.command("reproduce")(reproduce_command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(methods.app, name="methods")
app.add_typer(data.app, name="data")
app.add_typer(delta.app, name="delta")
app.add_typer(generate_adapter.app, name="generate-adapter")
app.command("env")(env_command)
bound(app)


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
    """Entry point. Expected failures are one line or a short list on standard error, with their own exit code.

    With `--json` standard output holds one document, whatever happens, and the failure is in it.
    """
    outermost = stop.listen()  # unless the process has listened from its start
    try:
        _to_the_end()
    finally:
        if outermost:
            stop.release()


def _to_the_end() -> None:
    if sys.stderr is None:  # closed by the caller; what is meant for it would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    draw_only_on_a_terminal()
    as_json = asks_for_json(sys.argv[1:])
    if as_json:
        with OneDocument() as document:
            failure = _run(as_json=True)
        if is_lead():
            _write(document.text(failure))
    else:
        failure = _run(as_json=False)
    if failure is None:
        sys.exit(0)
    if not isinstance(failure, LrftError):
        print(masked("".join(traceback.format_exception(failure))), end="", file=sys.stderr)
        sys.exit(1)
    for line in str(failure).splitlines():
        print(f"error: {line}" if not line.startswith("  ") else line, file=sys.stderr)
    sys.exit(failure.exit_code)


def _run(as_json: bool) -> Exception | None:
    """The command to its end; returns what it failed with. Without JSON, typer itself shows help and misuse."""
    try:
        with restored(), stop.listening():
            stop.poll()
            code = app(standalone_mode=not as_json)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort as error:  # what typer makes of an end of file, which a damaged file may be
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    except stop.Stopped as stopped:
        return stopped.error()
    except SystemExit as leaving:
        if not as_json and leaving.code != INTERRUPTED:
            raise
        code = leaving.code
    except BrokenPipeError:
        sys.exit(141)
    except MISUSE as error:
        return UsageError(error.format_message())
    except Exception as error:
        return _told(error)
    if code == INTERRUPTED:
        return stop.Stopped(signal.SIGINT).error()
    return LrftError(f"stopped with exit code {code}") if code else None


def _told(error: Exception) -> Exception:
    """The error itself, or a sentence where the system refuses a name that any argument may have been."""
    if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
        return UsageError(
            f"{str(error.filename)[:60]}...: the name is too long for a file; give a shorter one"
        )
    return error


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.exit(141)
