"""Which tables there are: the packaged ones of every tier by name, and files of one's own. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lrft.recipe import library
from lrft.recipe.document import parse, read_text
from lrft.recipe.tree import Place
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem, RecipeError, UsageError
from lrft.registry.json import Json, to_section

EXACT, SCALED, FULL = "exact", "scaled", "full"
# Tier -> what its tables are, and where below recipes/tables the packaged ones lie.
TIERS = {
    EXACT: "counted without weights",
    SCALED: "replayed by small trainings",
    FULL: "trained on the real models",
}
FOLDERS = {EXACT: ".", SCALED: "scaled", FULL: "full"}


@dataclass(frozen=True)
class Entry:
    """One table, before it is checked."""

    name: str
    tier: str
    path: Path

    def plain(self) -> Mapping[str, Json]:
        """The file's mapping as it is written; empty where it holds no mapping."""
        root, _ = parse(read_text(self.path), Place(str(self.path), 1, self.path.parent))
        return to_section(root.plain())


def folder() -> Path:
    """Where the packaged tables are."""
    return library.folder() / "tables"


def packaged(tier: str | None = None) -> dict[str, Entry]:
    """Name -> packaged table, of one tier or of all; `_parts.yaml` are none."""
    tiers = TIERS if tier is None else [tier]
    return {
        path.stem: Entry(path.stem, one, path)
        for one in tiers
        for path in sorted((folder() / FOLDERS[one]).glob("[!_]*.yaml"))
    }


def choose(names: list[str], tier: str | None = None) -> list[Entry]:
    """The tables meant: by name or file, of any tier unless one is given; without names all of a tier.

    Args:
        tier: the tier asked for; without it and without names the exact one.

    Raises:
        UsageError: there is no such tier or table, or it is of another tier.
        RecipeError: a file names no tier that there is.
    """
    if tier is not None and tier not in TIERS:
        raise UsageError(f"--tier {tier}: choose {', '.join(list(TIERS)[:-1])} or {list(TIERS)[-1]}")
    if not names:
        return list(packaged(tier or EXACT).values())
    return [_of_tier(find(name), tier) for name in dict.fromkeys(names)]


def find(name: str) -> Entry:
    """A table by packaged name or by file; the tier of a file is its `tier` key, `exact` where there is none.

    Raises:
        UsageError: there is none of that name.
        RecipeError: its tier is none that there is.
    """
    known = packaged()
    if name in known:
        return known[name]
    path = Path(name)
    if not name.endswith(".yaml") or not path.is_file():
        raise UsageError(f"no table {name!r}{did_you_mean(name, known)}")
    entry = Entry(path.stem, EXACT, path)
    tier = entry.plain().get("tier", EXACT)
    if not isinstance(tier, str) or tier not in TIERS:
        message = f"{tier!r} is none of {', '.join(TIERS)}"
        raise RecipeError(Problem("tier", message, str(path)))
    return Entry(path.stem, tier, path)


def _of_tier(entry: Entry, tier: str | None) -> Entry:
    if tier is not None and entry.tier != tier:
        raise UsageError(
            f"--tier {tier}: {entry.name} is a table of the {entry.tier} tier; leave --tier out, or name a {tier} table"
        )
    return entry
