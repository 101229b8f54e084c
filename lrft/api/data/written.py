"""The file that a command is asked for by `--out`: of the right kind, never over another, and whole."""

from __future__ import annotations

from pathlib import Path

from lrft.core import stop
from lrft.files.write import holds_other, write_file
from lrft.registry.errors import UsageError

KEPT = "what was measured is kept; the same command goes on"


def check_name(out: Path) -> None:
    """Refuse a name that is none of a file of rows.

    Raises:
        UsageError: it does not end in .jsonl.
    """
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: rows are JSON, one a line; give a name that ends in .jsonl")


def write_out(out: Path, content: str, other: str = "other rows") -> None:
    """Write the file, whole, whoever asks to stop meanwhile; the same one that is there already is no other.

    Args:
        other: what a file that is there already holds.

    Raises:
        UsageError: something else is there.
        WriteError: the disk is full or not writable.
    """
    if holds_other(out, content):
        raise UsageError(f"--out {out}: is there already and holds {other}; give another name, or remove it")
    with stop.held():
        write_file(out, content, f"--out {out}")
