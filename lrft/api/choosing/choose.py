"""`lrft choose`: which base to adapt and how, by fine-tuning or by demonstrations, before either is paid for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.api.choosing.candidates import Terms, shown, tuned
from lrft.api.choosing.costs import parse_price
from lrft.api.choosing.law import FEWEST
from lrft.api.choosing.looking import Looking
from lrft.api.choosing.past import accuracy_of, check_rows, compare
from lrft.api.choosing.record import Choice, Head, Past, PastRun, Shots, Strategy
from lrft.api.data.written import KEPT
from lrft.build.guess import with_format
from lrft.core import stop
from lrft.evaluation.progress import EvaluationBar
from lrft.files.made_records import ChoiceRecord
from lrft.files.own import check_own
from lrft.files.write import write_file
from lrft.recipe.load import LoadedRecipe, as_loaded, load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder, find
from lrft.training.relied import own_recipe

RECORD = "choice.json"


def choose(
    recipe: LoadedRecipe | Path | str,
    out: Path | str,
    bases: Sequence[str] = (),
    shots: Sequence[int] = (0, 1, 2, 4, 8),
    further: Sequence[int] = (),
    rows: int = 1000,
    questions: int = 1000,
    price: str | None = None,
    tradeoff: float = 0.0,
    past: Sequence[Path | str] = (),
    seed: int = 0,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Choice:
    """Predict what every strategy reaches and takes, on rows whose answers are a few classes, and order them.

        fine-tuning        acc = 1 - (E + A m^-alpha)     of a ridge head on frozen states, by its m rows; at all
        n demonstrations   acc = a - b exp(-n / tau)      through the n that are measured, the nearest training rows
        cost               = training tokens * price + questions * tokens of a question * price
        choice             = argmax of acc - tradeoff * cost

    The frame and the kinds of predictors are those of Wang et al., "COSMOS: Predictable and Cost-Effective Adaptation
    of LLMs", 2025, arXiv 2505.01449; the paper's own forms were not to be had, so the head and both curves are chosen
    here. Nothing is trained but the head. A head on frozen states is no fine-tuning, which mostly reaches more: give
    finished runs (`past`), which say by how much, and how well the order was right.

    What is measured goes into files of `out`, where the same command finds it; killed, it goes on there.

    Args:
        bases: values of `model.name`; by default the recipe's own.
        shots: numbers of demonstrations that are measured.
        further: numbers that are predicted from those.
        rows: training and held-out rows that are looked at, at most; more are drawn from by `seed`.
        questions: that will be asked once a model is adapted.
        price: `TRAINING,ASKING` of a million tokens; by default cost is in 10^15 floating-point operations.
        tradeoff: accuracy that one unit of cost is worth.
        past: finished runs that `lrft eval` scored.

    Raises:
        UsageError: the words make no comparison, or files of `out` hold something else.
        DataError, RecipeError: rows have no few classes, or are too few.
    """
    folder = Path(out)
    check_own(folder, RECORD, ChoiceRecord, what="a choice")
    terms = _terms(shots, further, questions, price, tradeoff, seed)
    own = with_format(as_loaded(recipe, overrides)).recipe
    names = list(bases) or [str(own.model.name)]
    files = _files(names)
    with stop.listening(KEPT), EvaluationBar() as show:
        looking = Looking(folder, rows, seed, trust_remote_code, show)
        looked_back = _look_back(past, looking)
        parts = []
        for base, file in zip(names, files, strict=True):
            chosen = _with_base(recipe, overrides, base) if bases else own
            parts.append(_of_base(chosen, base, file, terms, looked_back, looking))
        strategies = sorted((one for part in parts for one in part.strategies), key=lambda one: -one["score"])
        found: Choice = {
            "recipe": str(recipe) if isinstance(recipe, Path | str) else recipe.name,
            "classes": parts[0].classes,
            "held_out_rows": parts[0].held,
            "questions": questions,
            "tradeoff": tradeoff,
            "unit": parts[0].unit,
            "strategies": strategies,
            "apart": _apart(strategies),
            "heads": {base: part.head for base, part in zip(names, parts, strict=True)},
            "shots": {base: part.shots for base, part in zip(names, parts, strict=True) if part.shots},
            "past": looked_back,
            "notes": [note for part in parts for note in part.notes],
        }
        with stop.held():
            write_file(
                folder / RECORD, json.dumps(found, indent=2, allow_nan=False) + "\n", f"--out {folder}"
            )
    return found


@dataclass(frozen=True)
class _Part:
    """What was found of one base, whose model is gone by then."""

    classes: list[str]
    held: int
    unit: str
    strategies: list[Strategy]
    head: Head
    shots: Shots | None
    notes: list[str]


def _of_base(
    recipe: Recipe, base: str, file: str, terms: Terms, past: Past | None, looking: Looking
) -> _Part:
    looked = looking.at(recipe, file)
    strategy, head = tuned(looked, base, terms, past)
    strategies, shots, notes = [strategy], None, []
    if looked.text.renderer.labels:
        notes.append(f"{base}: rows with labels ask for no answer, so there are no demonstrations")
    else:
        more, shots = shown(looked, base, terms, looking.out, file, looking.show)
        strategies += more
    classes, unit = list(looked.pool.names), terms.of(looked).unit
    return _Part(classes, len(looked.held.gold), unit, strategies, head, shots, notes)


def _terms(
    shots: Sequence[int],
    further: Sequence[int],
    questions: int,
    price: str | None,
    tradeoff: float,
    seed: int,
) -> Terms:
    measured = sorted(shots)
    if not measured or len(set(measured)) < len(measured) or measured[0] < 0:
        raise UsageError("--shots: write different numbers of demonstrations, as 0,1,2,4")
    if further and len(measured) < FEWEST:
        raise UsageError(
            f"--further: a curve takes {FEWEST} numbers of --shots, and {len(measured)} are given"
        )
    if set(further) & set(measured) or len(set(further)) < len(further) or any(n < 0 for n in further):
        raise UsageError("--further: write different numbers of demonstrations that --shots does not have")
    if not (tradeoff >= 0 and math.isfinite(tradeoff)):
        raise UsageError(f"--tradeoff {tradeoff}: write what accuracy one unit of cost is worth, 0 or more")
    made = None if price is None else parse_price(price)
    return Terms(measured, sorted(further), questions, made, tradeoff, seed)


def _files(names: Sequence[str]) -> list[str]:
    """What the files of every base begin with."""
    files = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "base" for name in names]
    if len(set(files)) < len(files):
        raise UsageError(
            "--base: name each base once; folders whose paths differ by separators alone share their files"
        )
    return files


def _apart(strategies: Sequence[Strategy]) -> bool:
    """Whether no other strategy might be the best: a score is the accuracy less what is known exactly."""
    best, *others = strategies
    return all(one["score"] + one["high"] - one["accuracy"] < best["score"] for one in others)


def _with_base(recipe: LoadedRecipe | Path | str, overrides: Sequence[str], base: str) -> Recipe:
    if not isinstance(recipe, Path | str):
        raise UsageError("--base: bases are put in a recipe by its file or name")
    return with_format(load_recipe(recipe, [*overrides, f"model.name={json.dumps(base)}"])).recipe


def _look_back(runs: Sequence[Path | str], looking: Looking) -> Past | None:
    """What heads predict of finished runs, beside what these reached."""
    if not runs:
        return None
    folders = [find(run) for run in runs]
    names = [folder.path.name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError("--past: two runs have one name; give folders of other names")
    seen = [accuracy_of(folder) for folder in folders]

    def predicted(folder: RunFolder) -> float:
        recipe = with_format(own_recipe(folder.path)).recipe
        looked = looking.at(recipe, f"past-{folder.path.name}")
        check_rows(folder, looked.text)
        return looked.learning(looking.seed).at(looked.total_rows)

    found: list[PastRun] = [
        {"run": str(folder.path), "predicted": predicted(folder), "seen": accuracy}
        for folder, accuracy in zip(folders, seen, strict=True)
    ]
    return compare(found)
