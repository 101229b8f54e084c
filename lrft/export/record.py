"""What fidelity.json holds of an exported folder, and the sums that say later whether its files are whole."""

from __future__ import annotations

from pathlib import Path

from lrft.export.as_trained import AsTrained
from lrft.export.checks import Check
from lrft.export.fidelity import Compared
from lrft.export.pairs import SiteRecord
from lrft.files.sums import Sum, file_sum

RECORD = "fidelity.json"


class Exported(Compared, AsTrained, total=False):
    """How an export was made, how it compares with the run, and what a later look needs.

    `relative_error` is that of all changes together, in Frobenius norm, of the factors as written;
    `labels` are those of a score head, absent where there is none.
    """

    run: str
    target: str
    method: str | None
    base: str
    labels: list[str]
    quantization: str
    dtype: str
    merged: bool
    relative_error: float
    error_asked: float | None
    rank_asked: int | None
    rank: int
    exact_sites: int
    sites: dict[str, SiteRecord]
    tensors: int
    checklist: list[Check]
    told: list[str]
    pushed: str


def sums(folder: Path) -> dict[str, Sum]:
    """Name -> size and sum of every file of a folder but its record."""
    return {
        path.relative_to(folder).as_posix(): file_sum(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
