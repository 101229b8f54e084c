"""Whether a folder that reports go into is one of lrft's own, so that nothing of anybody else's is written over."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrft.files.json import read_object
from lrft.registry.errors import DamagedFile, UsageError


def check_own(out: Path, record: str, kind: Any, others: Iterable[str] = (), what: str = "this") -> None:
    """Refuse a folder that has files by the names of a report, and not the record that is written before them.

    Args:
        out: the folder, as `--out` names it; it need not be there.
        record: the file that is written first.
        kind: what the record holds (`lrft.files.made_records`).
        others: files that are written after it.
        what: writes them, such as `a sweep`.

    Raises:
        UsageError: somebody else's files have these names.
    """
    there = [name for name in (record, *others) if os.path.lexists(out / name)]
    if not there:
        return
    if there[0] != record:
        raise UsageError(
            f"--out {out}: holds {there[0]}, which {what} would write over, and no {record} of one; give another "
            "folder, or move it away"
        )
    try:
        read_object(out / record, kind, within=out)
    except DamagedFile as error:
        raise UsageError(
            f"--out {out}: its {record}, which {what} would write over, is none of one ({error.problem}); give another "
            "folder, or move it away"
        ) from None
