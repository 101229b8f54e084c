"""The command that began the runs, for their record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from lrft.registry.secrets import masked


def command_line() -> str:
    """The command as it was typed, its secrets masked: it is written into reports."""
    return masked(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
