"""`lrft data rank`: which source tasks are worth training on before a target, by estimates that train nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lrft.api.data.ranking import Ranking, Scored, is_run, read_whole
from lrft.api.data.written import KEPT, write_out
from lrft.build.guess import with_format
from lrft.core import stop
from lrft.core.transfer import TransferEstimate
from lrft.evaluation.intervals import Z
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.method_words import parse_named
from lrft.registry.axes import TRANSFER_ESTIMATES
from lrft.registry.errors import UsageError


class RankedSource(TypedDict):
    """A source and its score; `behind` is how far it is from the best, with the interval of that difference."""

    source: str
    rows: int | None
    score: float
    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float


class Ranked(TypedDict):
    """What a call found, best first; `classes` of a method that looks at answers, else None."""

    out: str
    method: str
    target_rows: int
    classes: list[str] | None
    sources: list[RankedSource]


def rank_sources(
    recipe: LoadedRecipe | Path | str,
    sources: Sequence[Path | str],
    method: str,
    out: Path | str,
    rows: int = 1000,
    seed: int = 0,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Ranked:
    """Order source tasks by what an estimate expects of training on them before the recipe, and write the order.

    Intervals are of target rows: each of ten groups is left out once (the delete-a-group jackknife), the same groups
    for every source, so that differences are of pairs.

    What is measured of rows goes into files beside `out`, where the same command finds it; killed, it goes on there.

    Args:
        sources: run folders; for a method that looks at rows alone recipes too.
        method: a name, or `{method: NAME, ...}` as recipes write sections.
        out: a .json file.
        rows: of the target, and of every source, at most; more are drawn from by `seed`.

    Raises:
        UsageError: the words do not fit the method, or `out` holds another order.
        DataError, RecipeError: rows cannot be read, or have no answers that such a method could look at.
    """
    config = parse_named(TRANSFER_ESTIMATES, method)
    made: TransferEstimate = TRANSFER_ESTIMATES.get(config.method)(config)
    path = Path(out)
    names = _names(made, path, sources)
    with stop.listening(KEPT), EvaluationBar() as show:
        chosen = with_format(as_loaded(recipe, overrides)).recipe
        text = read_whole(chosen, trust_remote_code, show)
        ranking = Ranking(made, path, chosen, text, rows, seed, trust_remote_code, show)
        by_answers = made.looks_at == "answers"
        classes, scored = (ranking.by_answers if by_answers else ranking.by_rows)(sources, names)
        scored.sort(key=lambda one: -one.score)
        found: Ranked = {
            "out": str(path),
            "method": config.method,
            "target_rows": ranking.used,
            "classes": classes,
            "sources": [_record(one, scored[0]) for one in scored],
        }
        write_out(path, json.dumps(found, indent=2, allow_nan=False) + "\n", "another order")
    return found


def _names(made: TransferEstimate, out: Path, sources: Sequence[Path | str]) -> list[str]:
    """A name for the files of every source; what does not fit the method is refused."""
    if out.suffix != ".json":
        raise UsageError(f"--out {out}: the order is one JSON document; give a name that ends in .json")
    if not sources:
        raise UsageError("--source: name the run of a source task, once or more often")
    runs = [is_run(source) for source in sources]
    if made.looks_at == "answers" and not all(runs):
        raise UsageError(
            f"--source {sources[runs.index(False)]}: {made.name} asks a model that was trained on the source; give the "
            "folder of its run"
        )
    names = [Path(s).name if run else Path(s).stem for s, run in zip(sources, runs, strict=True)]
    doubled = next((one for one in names if names.count(one) > 1 or one in ("", "base", "target")), None)
    if doubled is not None:
        raise UsageError(
            f"--source: {doubled!r} would name files of another source too; give a folder or file of another name"
        )
    return names


def _record(one: Scored, best: Scored) -> RankedSource:
    half = _half(one.without)
    apart = _half([a - b for a, b in zip(best.without, one.without, strict=True)])
    behind = best.score - one.score
    return {
        "source": one.name,
        "rows": one.rows,
        "score": one.score,
        "low": one.score - half,
        "high": one.score + half,
        "behind": behind,
        "behind_low": behind - apart,
        "behind_high": behind + apart,
    }


def _half(without: Sequence[float]) -> float:
    """Half of the interval of 95 % by the jackknife: z sqrt((g - 1) / g sum (value_k - mean)^2)."""
    mean = sum(without) / len(without)
    return Z * math.sqrt((len(without) - 1) / len(without) * sum((one - mean) ** 2 for one in without))
