"""docs/methods/grid.md as text: what happened to every adapter on every storage, compactly, refusals as footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from generated import plain, table
from grid_cells import DONE, ERROR, FAULT, OF_MOVE, PEFT, PLAIN, REFUSED, SAME_LOSS, STORAGES, WHATS, Cell

NOT_RUN = "."
NOTHING = "-"
HEAD = """# Adapters by storage

Written by `python scripts/grid.py` from what it recorded: every adapter on every storage, each cell a run that really
happened, three steps in float32 on a tiny random model with packed rows. What fails in any other way than by a sentence
to the user would stand here as **FAULT**, and the script would not pass. Tried with lrft {version};
{libraries}.

- **train**: `yes` where every loss is finite and the adapter moved.
- **merge**: `yes` where plain transformers computes the adapted logits from the merged folder, whose weights are the
  decoded ones with the change added; the largest difference is at most {move:g} of how far training moved a logit.
- **export**: `PEFT` where PEFT has the method and loads it with the adapted logits on the decoded base; `LoRA` where
  the change is written as factors, with at most {error:g} of it left out, and PEFT loads those.
- **resume**: `yes` where a run cut off after step 2 ends with the same losses, adapter and checkpoint, to the byte.
- **compile**: `yes` where `model.compile: true` traces forward and backward pass and gives the same losses to
  {loss:g}; of a one-layer model, with the graphs run as they were traced and no code generated.
- A number is the sentence below with which it is refused; `{nothing}`: it does not train, so there is nothing to ask;
  `{not_run}`: not run yet.

Beside it, as measured of PEFT itself: of 42 configurations of its methods 39 work whole on a dense base, 13 on NF4, and
13 on int8, four of whose merges are silently wrong.

"""


def page(cells: Sequence[Cell]) -> str:
    """The whole page."""
    found = {(cell.adapter, cell.storage, cell.what): cell for cell in cells}
    notes: dict[str, int] = {}
    rows = []
    for adapter in dict.fromkeys(cell.adapter for cell in cells):
        for storages in _alike(adapter, found, notes):
            told = "all" if len(storages) == len(STORAGES) else ", ".join(storages)
            rows.append((f"`{adapter}`", told, *_words(adapter, storages[0], found, notes)))
    head = HEAD.format(
        version=", ".join(sorted({cell.version for cell in cells})),
        libraries=" or ".join(sorted({cell.libraries for cell in cells})),
        move=OF_MOVE,
        error=ERROR,
        loss=SAME_LOSS,
        nothing=NOTHING,
        not_run=NOT_RUN,
    )
    parts = [head + table(("adapter", "storage", *WHATS), rows), "", _summary(cells), ""]
    if notes:
        parts += ["## Refusals", ""]
        parts += [f"{number}. {plain(sentence)}" for sentence, number in notes.items()] + [""]
    if faults := [cell for cell in cells if cell.outcome == FAULT]:
        parts += ["## Faults", ""]
        parts += [f"- `{c.adapter}` on `{c.storage}`, {c.what}: {plain(c.said)}" for c in faults] + [""]
    return "\n".join(parts)


Found = Mapping[tuple[str, str, str], Cell]


def _alike(adapter: str, found: Found, notes: dict[str, int]) -> list[list[str]]:
    """Storages on which the adapter has the same cells, together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for storage in STORAGES:
        groups.setdefault(_words(adapter, storage, found, notes), []).append(storage)
    return list(groups.values())


def _words(adapter: str, storage: str, found: Found, notes: dict[str, int]) -> tuple[str, ...]:
    """What stands in the cells of a row."""
    first = found.get((adapter, storage, "train"))
    none = NOT_RUN if first is None or first.outcome == DONE else NOTHING
    cells = [found.get((adapter, storage, what)) for what in WHATS]
    return tuple(none if cell is None else _word(cell, notes) for cell in cells)


def _word(cell: Cell, notes: dict[str, int]) -> str:
    if cell.outcome == REFUSED:
        return f"[{notes.setdefault(cell.said, len(notes) + 1)}](#refusals)"
    return {DONE: "yes", PEFT: "PEFT", PLAIN: "LoRA", FAULT: "**FAULT**"}[cell.outcome]


def _summary(cells: Sequence[Cell]) -> str:
    """How many adapters do everything on each storage, and the largest errors that were measured."""
    adapters = list(dict.fromkeys(cell.adapter for cell in cells))
    quick = [what for what in WHATS if what != "compile"]
    told = []
    for storage in STORAGES:
        here = {(c.adapter, c.what): c.outcome for c in cells if c.storage == storage}
        whole = [a for a in adapters if all(here.get((a, w)) in (DONE, PEFT, PLAIN) for w in quick)]
        told.append(f"{len(whole)} on `{storage}`")
    worst = {
        what: max(
            (
                c.found["logit_error"] / c.found["moved"]
                for c in cells
                if c.what == what and "moved" in c.found
            ),
            default=0.0,
        )
        for what in ("merge", "export")
    }
    return (
        f"Of {len(adapters)} adapters train, merge, export and resume: {', '.join(told)}. The largest difference of "
        f"a logit, as a share of how far training moved one: {worst['merge']:.1e} merged, {worst['export']:.1e} "
        "exported."
    )
