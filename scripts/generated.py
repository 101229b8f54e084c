"""Files of the documentation that scripts write: write them, or say which are out of date."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from lrft.lab.runs.report import table_lines  # noqa: E402

WRITTEN = re.compile(r"^Written by `python scripts/\w+\.py`", re.MULTILINE)


def write_or_check(fresh: Mapping[Path, str], arguments: Sequence[str], owned: Sequence[Path] = ()) -> int:
    """Write what differs from what lies there; with `--check` name it and write nothing.

    Args:
        fresh: file -> what it should hold.
        owned: folders whose other Markdown files are left over, and go.

    Returns:
        the exit code: 1 where `--check` found something out of date.
    """
    left = _left_over(fresh, owned)
    stale = out_of_date(fresh, owned)
    if list(arguments) == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date; run {Path(sys.argv[0]).name}", file=sys.stderr)
        return int(bool(stale))
    for path in left:
        path.unlink()
    for path, text in fresh.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def out_of_date(fresh: Mapping[Path, str], owned: Sequence[Path] = ()) -> list[Path]:
    """Files that are missing, differ, or belong to nothing any more."""
    return _left_over(fresh, owned) + [
        path for path, text in fresh.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def _left_over(fresh: Mapping[Path, str], owned: Sequence[Path]) -> list[Path]:
    """Pages of owned folders that are not written any more; one that names the script that writes it is that one's."""
    pages = [path for folder in owned for path in sorted(folder.glob("*.md")) if path not in fresh]
    return [page for page in pages if not WRITTEN.search(page.read_text(encoding="utf-8"))]


def with_block(page: str, name: str, block: str) -> str:
    """The page with `block` between its markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the markers {begin} and {end} are missing")
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already, a bar in them is escaped."""
    return "\n".join(table_lines(heads, rows))


def plain(text: str) -> str:
    """Text of a docstring or a description as Markdown: only what stands in backquotes keeps a meaning."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")
