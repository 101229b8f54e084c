"""`lrft data select`: the rows of a recipe that a method finds worth training on, as a file of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lrft.api.data.measure import Measuring, Part
from lrft.api.data.written import KEPT, check_name, write_out
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.rows import made_format
from lrft.build.text import Text, check_text
from lrft.core import stop
from lrft.core.data_selection import DataSelection, Measured, Selection
from lrft.data.encode import encode_each
from lrft.data.encoded import Encoded
from lrft.data.example import OwnRow
from lrft.data.rows import Rows
from lrft.data.sources import read_rows
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.method_words import parse_named
from lrft.recipe.schema import Recipe
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Source
from lrft.registry.errors import DataError, RecipeError, UsageError
from lrft.registry.json import Json

COLUMN = "selected"  # of a row that was chosen: how it came to be


class ChosenRow(TypedDict):
    """A row that was chosen, best first."""

    row: str
    score: float
    reason: str


class Selected(TypedDict):
    """What a call did.

    Attributes:
        pool: rows that there were to choose from; `left_out` others have nothing to learn, or were dropped.
        chosen: the rows that `out` holds, in its order.
    """

    out: str
    method: str
    pool: int
    left_out: int
    chosen: list[ChosenRow]
    notes: list[str]


def select_rows(
    recipe: LoadedRecipe | Path | str,
    method: str,
    out: Path | str,
    budget: int | None = None,
    target: Path | str | None = None,
    runs: Sequence[Path | str] = (),
    seed: int = 0,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
    processes: int = 1,
) -> Selected:
    """Choose training rows of a recipe, and write them as they were read, best first, with a column `selected`.

    What a model measures of rows goes into files beside `out`, where another call of the same rows finds it; killed, it
    goes on there.

    Args:
        method: a name, or `{method: NAME, ...}` as recipes write sections.
        out: a .jsonl file.
        budget: how many rows; None for a method that says so itself.
        target: a file of rows in the recipe's format that the chosen ones are to serve.
        runs: run folders or checkpoints whose weights measure the rows; by default the recipe's as they begin.
        seed: of what is drawn.
        processes: that make tokens of rows; the result is the same with any number.

    Raises:
        UsageError: the words do not fit the method, or `out` holds other rows.
        DataError, RecipeError: the rows cannot be read, or not be selected by that method.
    """
    config = parse_named(DATA_SELECTIONS, method)
    made: DataSelection = DATA_SELECTIONS.get(config.method)(config)
    path = Path(out)
    _check_words(made, path, budget, target, runs)
    with stop.listening(KEPT), EvaluationBar() as show:
        chosen = with_format(as_loaded(recipe, overrides)).recipe
        _check_rows(chosen, made)
        text = read_text(chosen, trust_remote_code=trust_remote_code, progress=show, processes=processes)
        check_text(text, chosen)
        rows, encoded = text.learnt()
        if budget is not None and budget > len(rows):
            raise UsageError(f"--budget {budget}: there are {len(rows)} rows to choose from")
        parts = [Part(encoded, rows.where, path)]
        notes: list[str] = []
        if target is not None:
            goal, goal_rows = _target(Path(target), text, chosen)
            parts.append(Part(goal_rows, goal.where, path.with_suffix(".target.jsonl")))
            notes = _told(goal, text)
        measuring = Measuring(chosen, text, made, runs, seed, trust_remote_code, show)
        pool, served = _measured(measuring, parts)
        found = made.choose(pool, served, budget or len(rows), seed)
        _write(path, rows, found, config.method)
    return {
        "out": str(path),
        "method": config.method,
        "pool": len(rows),
        "left_out": len(text.train) - len(rows),
        "chosen": [
            {"row": rows.where(one.row), "score": one.score, "reason": one.reason} for one in found.chosen
        ],
        "notes": [*notes, *found.notes],
    }


def _measured(measuring: Measuring, parts: Sequence[Part]) -> tuple[Measured, Measured | None]:
    """The pool, and the target where there is one, with what the method needs of them."""
    features = measuring.features(parts)
    pool, *served = [
        Measured([row.targets for row in part.rows], found, part.where)
        for part, found in zip(parts, features, strict=True)
    ]
    return pool, served[0] if served else None


def _check_words(
    method: DataSelection,
    out: Path,
    budget: int | None,
    target: Path | str | None,
    runs: Sequence[Path | str],
) -> None:
    """Refuse what a method has no use for, and what it lacks."""
    check_name(out)
    if method.counts and budget is not None:
        raise UsageError(f"--budget {budget}: {method.name} says itself how many, as it is set; leave it out")
    if not method.counts and budget is None:
        raise UsageError(f"--budget: {method.name} has to be told how many rows there are to be")
    if method.targeted and target is None:
        raise UsageError(
            f"--target: {method.name} chooses rows that serve others; name a file of rows of the task, none of which "
            "is scored in the end"
        )
    if not method.targeted and target is not None:
        raise UsageError(f"--target {target}: {method.name} compares rows with no others; leave it out")
    if runs and method.need is None:
        raise UsageError(f"--run {runs[0]}: {method.name} runs no model; leave it out")
    if len(runs) > 1 and method.need != "gradients":
        raise UsageError(f"--run {runs[1]}: {method.name} takes one model; give one run")


def _check_rows(recipe: Recipe, method: DataSelection) -> None:
    """Refuse rows that are not one text each, learnt token by token."""
    if recipe.data.too_long == "windows":
        raise RecipeError(
            "a row in several windows is none that could be chosen; write drop or truncate_left",
            "data.too_long",
        )
    kinds = made_format(recipe).provides & {"pairs", "labels", "judged", "passages"}
    if kinds and method.need is not None:
        raise RecipeError(
            f"{method.name} measures rows that are learnt token by token, and these are {next(iter(kinds))}; choose "
            "another method, or another format",
            "data.format",
        )


def _target(path: Path, text: Text, recipe: Recipe) -> tuple[Rows, list[Encoded]]:
    """The rows of the target that have something to learn, in the recipe's format."""
    rows = read_rows(Source(source=str(path)), "train", recipe.data.seed, "--target")
    encoded, of = encode_each(rows, text.renderer)
    usable = [k for k, row in enumerate(encoded) if not row.dropped and row.targets]
    if not usable:
        raise DataError(f"--target {path}: no row has a token to learn within train.max_length")
    return rows.chosen([of[k] for k in usable]), [encoded[k] for k in usable]


def _told(target: Rows, text: Text) -> list[str]:
    """What somebody should know who serves the rows that are scored."""
    held = set() if text.held_out is None else set(text.held_out.sums.values())
    if held.isdisjoint(target.sums.values()):
        return []
    return ["the target is the held-out rows of the recipe, whose scores will say less of other rows"]


def _write(path: Path, rows: Rows, found: Selection, method: str) -> None:
    """The rows as they were read.

    Raises:
        UsageError: the file holds something else.
    """
    lines = []
    for place, one in enumerate(found.chosen, 1):
        row = rows[one.row]
        where = rows.where(one.row)
        if isinstance(row, OwnRow):
            raise UsageError(
                f"{where}: is of a source with a format of its own, which the file of all chosen rows would lose; "
                "select from each source by itself"
            )
        told: dict[str, Json] = {
            "place": place,
            "score": one.score,
            "reason": one.reason,
            "by": method,
            "from": where,
        }
        try:
            lines.append(json.dumps({**row, COLUMN: told}, ensure_ascii=False, allow_nan=False) + "\n")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: holds what JSON has no form of ({error}); remove that column"
            ) from error
    write_out(path, "".join(lines))
