"""Write docs/methods/, a page for every axis, and the grid of names in the README, from what the methods declare.

    python scripts/methods_pages.py [--check]

`--check` writes nothing and exits 1 when something is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import to_jsonable_python  # noqa: E402

from generated import plain, table, with_block, write_or_check  # noqa: E402
from lrft.recipe.fields import slot_of  # noqa: E402
from lrft.recipe.schema import Recipe  # noqa: E402
from lrft.registry.axes import (  # noqa: E402
    AGGREGATORS,
    ANALYSES,
    AXES,
    COMBINATIONS,
    DATA_SELECTIONS,
    FORMATS,
    GENERATORS,
    REWARDS,
    SEARCHES,
    SIGNALS,
    TASKS,
    TRANSFER_ESTIMATES,
)
from lrft.registry.registry import Declaration, Registry  # noqa: E402
from lrft.registry.traits import TRAITS  # noqa: E402

README = ROOT / "README.md"
FOLDER = ROOT / "docs" / "methods"
SMOKE = ROOT / "recipes" / "smoke"
# Where in a recipe -> what may stand there.
EVERY: dict[str, Registry] = {
    **AXES,
    "data.format": FORMATS,
    "eval.tasks": TASKS,
    "analyse": ANALYSES,
    "federate.aggregate": AGGREGATORS,
    "objective.rewards": REWARDS,
    "signals": SIGNALS,
    "search": SEARCHES,
    "combine": COMBINATIONS,
    "data_selection": DATA_SELECTIONS,
    "transfer": TRANSFER_ESTIMATES,
    "generate": GENERATORS,
}
# What each axis chooses; an axis that is new here is told by its registry's own word.
CHOOSES = {
    "quantization": "how frozen weights are stored",
    "adapter": "what trains beside a frozen weight",
    "init": "where the adapter begins",
    "allocate": "which site gets which rank, before or while it trains",
    "restart": "when the adapter is folded into the base and begins anew",
    "select": "which layers train in a step",
    "prune": "which heads, channels or ranks of the base go",
    "optimizer": "how gradients become updates",
    "objective": "what is minimised",
    "schedule": "the learning rate over the steps",
    "data.format": "how a row becomes a text, and what of it is learnt",
    "eval.tasks": "what `lrft eval` scores",
    "analyse": "what is measured of weights and gradients while a recipe trains",
    "federate.aggregate": "what clients of `lrft federate` send, and how it is averaged",
    "objective.rewards": "what an answer that the model drew is worth, for objectives that learn from such",
    "signals": "statistics that some starts measure before training; no recipe key, an `init` asks for them",
    "search": "which arm `lrft search` trains next; no recipe key, `--method` names it",
    "combine": "how `lrft combine` makes one adapter of several; no recipe key, `--method` names it",
    "data_selection": "which rows `lrft data select` keeps; no recipe key, `--method` names it",
    "transfer": "which task `lrft data rank` would train on first; no recipe key, `--method` names it",
    "generate": "how `lrft generate-adapter` draws an adapter; no recipe key, `--method` names it",
}
LABEL = r"[A-Z][a-z]+: "  # begins a named paragraph
EQUATION = re.compile(r" = |<-|~ |\{\"")

INDEX = """# Methods

Written by `python scripts/methods_pages.py` from the methods' own files; a test keeps these pages current. `lrft
methods ls` lists the same on a terminal, `lrft methods show NAME` prints one. What each adapter does on each storage
was tried, cell by cell: [adapters by storage](grid.md). What each method learns on one task, and what it costs, is on
the [board](board.md).

{grid}

## What combines with what

Any adapter, start, allocation, restart, optimizer and storage format may be put together. The exceptions follow from
what each method says of itself: it provides some traits and requires others, and the recipe check names every
requirement that nothing in the recipe provides. Settings that go with few others say so themselves. A contract suite
per axis runs over everything that is registered on it: for every adapter on every storage format, that the forward
pass is the merged weight's, that nothing but the adapter gets a gradient, that its parameters are as many as its
docstring says; for every optimizer, that it saves and restores itself exactly; for every start, that the model is the
pretrained one at step 0 unless it says otherwise; and so on. Beyond them, recipes are drawn at random over all axes:
what the check lets through has to train, resume to the same bytes, and merge or refuse (`tests/test_composition.py`).

| trait | means |
| --- | --- |
{traits}

## Weights without an adapter, and beside one

`trainable: full` trains the base weights themselves, without an adapter; `trainable: [PATTERNS]` trains some of them
beside one. `trainable.update` says how bfloat16 weights are updated: in place, through a float32 master, or with
stochastic rounding. `optimizer.per_layer: true` updates each parameter in the backward pass and frees its gradient.
`trainable: ["*.bias"]` works beside any adapter and storage, and merges and PEFT files hold the biases; in bfloat16,
add `update: master`.

## Restarts on a quantized base

What a restart folds into the base is kept beside the stored weight in float32 and never rounded into it, so a 4-bit
base stays what it was, `adapter/` is a LoRA of the summed rank, and the pretrained model can still be switched to.
"""


def grid(link: str) -> str:
    """One row an axis that every recipe may have: its key, its names; `link` is where the pages lie."""
    rows = [
        (f"[`{axis}`]({link}{page_name(axis)})", "`" + " ".join(EVERY[axis].names()) + "`")
        for axis in (*AXES, "data.format", "eval.tasks", "analyse")
    ]
    return table(("recipe key", "names"), rows)


def index() -> str:
    """The first page: every axis, what combines with what."""
    rows = []
    for axis, registry in EVERY.items():
        page = page_name(axis)
        names = " ".join(f"[`{name}`]({page}#{name})" for name in registry.names())
        rows.append((f"[`{axis}`]({page})", chooses(axis), names))
    traits = [f"| `{name}` | {plain(meaning)} |" for name, meaning in TRAITS.items()]
    heads = ("recipe key", "chooses", "names")
    return INDEX.format(grid=table(heads, rows), traits="\n".join(traits))


def page(axis: str) -> str:
    """Every method of an axis: docstring, settings, traits, and a recipe that uses it."""
    registry = EVERY[axis]
    lines = [f"# {axis}", "", f"{chooses(axis)[0].upper()}{chooses(axis)[1:]}.{_default(axis)}", ""]
    rows = [(f"[`{name}`](#{name})", plain(registry.declared(name).summary)) for name in registry.names()]
    lines += [table(("name", "what it is"), rows), ""]
    for name in registry.names():
        lines += [f"## {name}", "", *method(axis, registry.declared(name)), ""]
    return "\n".join(lines).rstrip() + "\n"


def method(axis: str, declared: Declaration) -> list[str]:
    """One method, below its heading."""
    lines = [docstring(declared.doc), ""]
    if axis != "signals":
        lines += [settings(declared), ""]
    for word, traits in (("Provides", declared.provides), ("Requires", declared.requires)):
        if traits:
            told = ", ".join(f"`{trait}`" for trait in sorted(traits))
            lines += [f"{word} ([traits](index.md#what-combines-with-what)): {told}.", ""]
    called = sorted({one for names in declared.aliases for one in names.split()} - {declared.name})
    if called:
        lines += [f"Found under other tools' words too: {', '.join(f'`{one}`' for one in called)}.", ""]
    return [*lines, *snippet(axis, declared.name)]


def docstring(doc: str) -> str:
    """A docstring as Markdown: indented blocks as they stand, everything else as text, names of paragraphs bold.

    In a docstring without indented blocks, the lines before the first named paragraph are kept as they stand where they
    hold an equation.
    """
    summary, _, rest = inspect.cleandoc(doc).partition("\nArgs:\n")[0].partition("\n")
    loose = not re.search(r"^ {4}", rest, re.MULTILINE)
    found = [plain(summary)]
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        for part in re.split(rf"\n(?={LABEL})", block):
            found += _paragraph(part, loose)
    return "\n\n".join(part for part in found if part)


def _paragraph(part: str, loose: bool) -> list[str]:
    """One paragraph, lines that are indented in it as a block of their own."""
    if loose and "\n" in part.strip() and EQUATION.search(part) and not re.match(LABEL, part):
        return [_fenced(part)]
    found = []
    for indented, lines in groupby(part.splitlines(), lambda line: line.startswith("    ")):
        text = "\n".join(lines)
        named = re.match(LABEL, text) if not indented else None
        if indented:
            found.append(_fenced(inspect.cleandoc("\n" + text)))
        elif named:
            found.append(f"**{named[0].strip()}** {plain(text[named.end() :])}")
        else:
            found.append(plain(text))
    return found


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def settings(declared: Declaration) -> str:
    """The settings of a method, with what may stand there and the default."""
    rows = [setting(name, field) for name, field in declared.config.model_fields.items() if name != "method"]
    return table(("setting", "value", "default", "what it does"), rows) if rows else "No settings."


def setting(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    """One row of a table of settings."""
    default = "required" if field.is_required() else f"`{_shown(field)}`"
    return f"`{name}`", plain(slot_of(field).words()), default, plain(field.description or "")


def _shown(field: FieldInfo) -> str:
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    return value if isinstance(value, str) and value else json.dumps(value)


def snippet(axis: str, name: str) -> list[str]:
    """A recipe that selects the method: its smoke recipe, or the line that names it."""
    path = SMOKE / f"{name}.yaml"
    if axis in AXES and path.is_file():
        text = re.sub(r"\A(#.*\n|\n)*", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"^extends: _base\.yaml\n+", "", text, flags=re.MULTILINE)
        text = text.strip() or _line(axis, name)
        return [
            f"Three steps of it: `lrft train smoke/{name}`, which lays this over `smoke/_base`:",
            "",
            _yaml(text),
        ]
    if axis in ("eval.tasks", "analyse", "objective.rewards"):
        return ["In a recipe:", "", _yaml(_line(axis, name))]
    if axis == "data.format":
        return [
            f"Five rows of it, what they become and what is learnt: [your own data](../own-data.md#{name})."
        ]
    return []


def _line(axis: str, name: str) -> str:
    if axis == "eval.tasks" and "score_head" in TASKS.declared(name).requires:
        scored = "model:\n  head: [negative, positive]\n\nobjective: classify\n\ndata:\n  format: classify"
        if "pairs" in TASKS.declared(name).requires:
            scored = "model:\n  head: [reward]\n\nobjective: reward\n\ndata:\n  format: preference"
        return f"{scored}\n\neval:\n  tasks: [{name}]"
    if axis == "eval.tasks" and "passages" in TASKS.declared(name).requires:
        return f"objective: contrastive\n\ndata:\n  format: retrieval\n\neval:\n  tasks: [{name}]"
    if axis == "eval.tasks":
        written = {
            word: line for words, line in TASKS.declared(name).aliases.items() for word in words.split()
        }
        return f"eval:\n  {written.get(name, f'tasks: [{name}]')}"
    if axis == "analyse":
        routed = "adapter: loramoe\n\n" if "routed" in ANALYSES.declared(name).requires else ""
        return f"{routed}analyse: [{name}]"
    if axis == "objective.rewards":
        owed = [
            key for key, field in REWARDS.declared(name).config.model_fields.items() if field.is_required()
        ]
        given = "".join(f", {key}: mine" for key in owed)
        chosen = f"{{method: {name}{given}}}" if owed else name
        return f"objective:\n  method: grpo\n  rewards: [{chosen}]"
    return f"{axis}: {name}"


def _yaml(text: str) -> str:
    return f"```yaml\n{text}\n```"


def _default(axis: str) -> str:
    field = Recipe.model_fields.get(axis)
    if axis not in AXES or field is None:
        return ""
    value: Any = field.get_default(call_default_factory=True)
    value = getattr(value, "method", value)
    return f" Without the key it is `{'null' if value is None else value}`."


def chooses(axis: str) -> str:
    """What the axis chooses, in a few words."""
    return CHOOSES.get(axis, f"the {EVERY[axis].kind}")


def page_name(axis: str) -> str:
    """The file of an axis in docs/methods/."""
    return f"{axis.replace('.', '-')}.md"


def source(declared: Declaration) -> str:
    """The docstring's `Source:`, up to its `Departures` or the next paragraph; titles hold colons of their own."""
    found = re.search(
        rf"^ *Source: (.+?)(?=\s+Departures\b[^:]*:|\n\s*\n|\n *{LABEL}|\Z)", declared.doc, re.S | re.M
    )
    return " ".join(found[1].split()).rstrip(".;") if found else ""


def fresh() -> dict[Path, str]:
    """Every file that this script writes."""
    readme = README.read_text(encoding="utf-8")
    pages = {FOLDER / page_name(axis): page(axis) for axis in EVERY}
    return {
        README: with_block(readme, "methods", grid("docs/methods/")),
        FOLDER / "index.md": index(),
        **pages,
    }


if __name__ == "__main__":
    raise SystemExit(write_or_check(fresh(), sys.argv[1:], [FOLDER]))
