"""`lrft doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core import stop
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.asking.doctor import Diagnosis


def doctor_command(
    folder: Annotated[Path, typer.Argument(help="Run folder, adapter, merged or exported folder.")],
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a folder is whole, and that a server would see what training saw. Exits with 2 where it would not.

    Example: lrft doctor served/
    """
    from lrft.api.asking.doctor import diagnose, judge

    silence(quiet)
    with stop.at_once():
        found = diagnose(folder, trust_remote_code)
    result(found, as_json, _show)
    judge(found)


def _show(found: Diagnosis) -> None:
    print(f"{found['folder']}: {found['kind']}")
    for check in found["checks"]:
        print(f"ok     {check['check']}" if check["passed"] else f"WRONG  {check['check']}: {check['found']}")
    for note in found["told"]:
        print(f"note   {note}")
    for line in found["next"]:
        print(f"next   {line}")
