"""A generated adapter beside the trained one and beside cheap ones, on held-out rows, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch

from lrft.api.combining.folder import Made
from lrft.api.combining.scores import standing_in
from lrft.api.generating.folder import Opened
from lrft.core import stop
from lrft.core.adapter import Factors
from lrft.data.eval_batches import eval_batches
from lrft.evaluation.intervals import bootstrap
from lrft.evaluation.loss import row_losses
from lrft.evaluation.subject import Progress
from lrft.export.pairs import Pair
from lrft.registry.errors import UsageError

GENERATED, TRAINED, BASE, MEAN, RANDOM = "generated", "trained", "base", "mean", "random"

Row = tuple[float, int]
"""The summed loss of a row in nats, and its supervised tokens."""


class Beside(TypedDict):
    """An adapter beside the generated one.

    Attributes:
        loss: mean over tokens, in nats.
        difference: the generated one's loss less this one's.
        interval: of the difference, 95 %, over rows.
        tells: `better`, `worse`, or `nothing` where the interval holds 0: the generated one against this.
    """

    loss: float
    difference: float
    interval: tuple[float, float]
    tells: str


class Judged(TypedDict):
    """What was scored.

    Attributes:
        loss: of the generated adapter, over all draws.
        draws: of every draw for itself, the written one first.
        recovered: share of what training gained over the base that the generated one has; None where training gained
            nothing that these rows can tell.
        recovered_interval: of that share, 95 %, over rows.
        words: the same in sentences.
    """

    rows: int
    tokens: int
    loss: float
    draws: list[float]
    beside: dict[str, Beside]
    recovered: float | None
    recovered_interval: tuple[float, float] | None
    words: list[str]


def judge(
    made: Made,
    generated: Sequence[Mapping[str, Factors]],
    others: Mapping[str, Mapping[str, Factors]],
    limit: int | None,
    progress: Progress,
) -> Judged:
    """Score all of them on the same held-out rows.

    Args:
        made: the model, with the adapter that was written.
        generated: one of every draw.
        others: name -> adapter.
        limit: rows at most.

    Raises:
        UsageError: the recipe holds no rows out.
    """
    encoded = made.text.held_out_encoded(limit or made.recipe.eval.limit)
    if not encoded:
        raise UsageError("--judge: the recipe holds no rows out; add data.eval to it")
    batches = list(eval_batches(encoded, made.recipe.eval.batch_tokens, made.text.pad_id))
    found: dict[str, list[Row]] = {}
    candidates = {**{str(place): one for place, one in enumerate(generated)}, **others}
    for done, (name, factors) in enumerate(candidates.items(), 1):
        stop.poll()
        with standing_in(made, {site: Pair(*pair) for site, pair in factors.items()}):
            found[name] = row_losses(made.adaptation.model, batches)
        progress("judging", done, len(candidates))
    draws = [found.pop(str(place)) for place in range(len(generated))]
    return compared(draws, found)


def compared(draws: Sequence[Sequence[Row]], others: Mapping[str, Sequence[Row]]) -> Judged:
    """The rows of every draw beside those of the others; all in one order."""
    own = [
        (math.fsum(one[row][0] for one in draws) / len(draws), draws[0][row][1])
        for row in range(len(draws[0]))
    ]
    beside = {name: _beside(own, rows) for name, rows in others.items()}
    share = _recovered(own, others)
    found: Judged = {
        "rows": len(own),
        "tokens": sum(tokens for _, tokens in own),
        "loss": _mean(own),
        "draws": [_mean(one) for one in draws],
        "beside": beside,
        "recovered": None if share is None else share[0],
        "recovered_interval": None if share is None else share[1],
        "words": [],
    }
    found["words"] = _words(found)
    return found


def stand_ins(opened: Opened, seed: int) -> dict[str, dict[str, Factors]]:
    """What a generated adapter has to be better than, made of the library: its mean, and noise of its spread."""
    summary, layout = opened.summary, opened.layout
    noise = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor(layout.lengths)
    random = summary.centres.repeat_interleave(lengths) + summary.spreads.repeat_interleave(lengths) * noise
    return {BASE: {}, MEAN: layout.factors(summary.mean), RANDOM: layout.factors(random)}


def _beside(own: Sequence[Row], rows: Sequence[Row]) -> Beside:
    pairs = [(a - b, tokens) for (a, tokens), (b, _) in zip(own, rows, strict=True)]
    low, high = bootstrap(pairs, _mean)
    tells = "better" if high < 0 else "worse" if low > 0 else "nothing"
    return {"loss": _mean(rows), "difference": _mean(pairs), "interval": (low, high), "tells": tells}


def _recovered(
    own: Sequence[Row], others: Mapping[str, Sequence[Row]]
) -> tuple[float, tuple[float, float]] | None:
    """(base - generated) / (base - trained), where the rows can tell that training gained something."""
    gains = [
        (base - mine, base - trained, tokens)
        for (mine, tokens), (base, _), (trained, _) in zip(own, others[BASE], others[TRAINED], strict=True)
    ]
    if not bootstrap([(gain, tokens) for _, gain, tokens in gains], _mean)[0] > 0:
        return None

    def share(rows: Sequence[tuple[float, float, int]]) -> float:
        of = math.fsum(trained for _, trained, _ in rows)
        return math.fsum(mine for mine, _, _ in rows) / of if of > 0 else math.nan

    return share(gains), bootstrap(gains, share)


def _mean(rows: Sequence[Row]) -> float:
    return math.fsum(total for total, _ in rows) / sum(tokens for _, tokens in rows)


def _words(found: Judged) -> list[str]:
    said = []
    for name, one in found["beside"].items():
        low, high = one["interval"]
        if one["tells"] == "nothing":
            said.append(
                f"{found['rows']} rows are too few to tell generated from {name}: the difference is "
                f"{one['difference']:+.4f}, 95 % from {low:+.4f} to {high:+.4f}"
            )
        else:
            said.append(
                f"generated is {one['tells']} than {name}, by {abs(one['difference']):.4f} nats per token"
            )
    if found["recovered"] is None:
        said.append(
            "what training gained over the base is not told from nothing on these rows, so no share is said"
        )
    return [
        *said,
        "this is one task: the intervals are over its rows, and say nothing of how other tasks would fare",
    ]
