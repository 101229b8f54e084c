"""The strategies of one base with what each reaches and takes: fine-tuning by its head, demonstrations by their law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lrft.api.choosing.costs import Price, price_in_operations
from lrft.api.choosing.demonstrations import Answered, Demonstrated, answer_of
from lrft.api.choosing.law import FEWEST, fit_shots
from lrft.api.choosing.looking import Looked
from lrft.api.choosing.probe import Learning
from lrft.api.choosing.record import Head, Past, Shots, Strategy
from lrft.api.planning.predict import line_through
from lrft.build.identify import identify_base
from lrft.build.job import subject
from lrft.evaluation.intervals import Z, bootstrap, wilson
from lrft.evaluation.progress import EvaluationBar
from lrft.registry.errors import DataError
from lrft.registry.json import Json

TUNED = "fine-tuning"


@dataclass(frozen=True)
class Terms:
    """What strategies are compared by.

    Attributes:
        shots: numbers of demonstrations that are measured.
        further: those that are predicted.
        questions: that will be asked once a model is adapted.
        price: None for floating-point operations.
    """

    shots: Sequence[int]
    further: Sequence[int]
    questions: int
    price: Price | None
    tradeoff: float
    seed: int

    def of(self, looked: Looked) -> Price:
        """The price of a token of this base."""
        if self.price is not None:
            return self.price
        return price_in_operations(looked.recipe, sum(one.numel() for one in looked.model.hf.parameters()))

    def strategy(
        self,
        base: str,
        name: str,
        value: tuple[float, float, float],
        measured: bool,
        tokens: tuple[float, float],
        price: Price,
    ) -> Strategy:
        """One way of adapting, its accuracy with an interval, its tokens of training and of a question."""
        accuracy, low, high = (min(max(one, 0.0), 1.0) for one in value)
        cost = price.of(tokens[0], tokens[1] * self.questions)
        return {
            "base": base,
            "strategy": name,
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "measured": measured,
            "training_tokens": tokens[0],
            "question_tokens": tokens[1],
            "cost": cost,
            "score": accuracy - self.tradeoff * cost,
        }


def tuned(looked: Looked, base: str, terms: Terms, past: Past | None) -> tuple[Strategy, Head]:
    """Fine-tuning on all training rows, by the curve of a head on frozen states, put right by past runs."""
    learning, total = looked.learning(terms.seed), looked.total_rows
    predicted = learning.at(total)
    low, high = _of_rows(learning, total, terms.seed)
    value = predicted, low, high
    if past is not None:
        middle, low, high = (past["shift"] + past["slope"] * one for one in value)
        spread = Z * (past["rmse"] or 0.0)
        value = middle, *_wider(middle, min(low, high), max(low, high), spread)
    tokens = looked.training_tokens, looked.question_tokens
    head: Head = {
        "rows": list(learning.sizes),
        "accuracies": learning.right.mean(0).tolist(),
        "of_rows": total,
        "tried": learning.tried(),
        "predicted": predicted,
    }
    return terms.strategy(base, TUNED, value, False, tokens, terms.of(looked)), head


def shown(
    looked: Looked, base: str, terms: Terms, out: Path, name: str, show: EvaluationBar
) -> tuple[list[Strategy], Shots]:
    """Every number of demonstrations: those that are measured, and those that the curve through them predicts."""
    most = max(terms.shots)
    if most > len(looked.pool.gold):
        raise DataError(
            f"--shots {most}: {len(looked.pool.gold)} training rows are looked at; give fewer, or more --rows"
        )
    rows = Demonstrated(
        subject(looked.recipe, looked.text, looked.model, show),
        looked.pool,
        looked.held,
        looked.near(most),
        _says(looked),
    )
    about: dict[str, Json] = {
        **identify_base(looked.recipe.model, looked.model),
        "batch_tokens": looked.recipe.eval.batch_tokens,
    }
    found = {n: rows.answer(n, out / f"{name}.shots-{n}.jsonl", dict(about)) for n in terms.shots}
    price = terms.of(looked)
    made = []
    for n, one in found.items():
        hits, count = sum(one.right), len(one.right)
        value = hits / count, *wilson(hits, count)
        made.append(terms.strategy(base, _named(n), value, True, (0.0, one.tokens), price))
    return made + _further(found, base, terms, price, rows.subject.positions), _record(found)


def _further(
    found: dict[int, Answered], base: str, terms: Terms, price: Price, positions: int | None
) -> list[Strategy]:
    if not terms.further:
        return []
    shots = list(found)
    right = list(zip(*(one.right for one in found.values()), strict=True))
    start, each, _ = line_through([(float(n), one.tokens) for n, one in found.items()])
    if positions is not None and start + each * max(terms.further) > positions:
        raise DataError(
            f"--further {max(terms.further)}: about {start + each * max(terms.further):.0f} tokens, and {base} has "
            f"{positions} positions; give fewer"
        )

    def at(n: int, rows: Sequence[tuple[bool, ...]]) -> float:
        return fit_shots(shots, [sum(column) / len(rows) for column in zip(*rows, strict=True)]).at(n)

    return [
        terms.strategy(
            base,
            _named(n),
            (at(n, right), *bootstrap(right, lambda rows, n=n: at(n, rows), terms.seed)),  # type: ignore[misc]
            False,
            (0.0, start + each * n),
            price,
        )
        for n in terms.further
    ]


def _record(found: dict[int, Answered]) -> Shots:
    shots = list(found)
    means = [sum(one.right) / len(one.right) for one in found.values()]
    curve = fit_shots(shots, means) if len(shots) >= FEWEST else None
    before = fit_shots(shots[:-1], means[:-1]).at(shots[-1]) if len(shots) > FEWEST else None
    ceiling, gap, scale = (None, None, None) if curve is None else curve
    return {
        "shots": shots,
        "accuracies": means,
        "ceiling": ceiling,
        "gap": gap,
        "scale": scale,
        "tried": before,
    }


def _says(looked: Looked) -> list[str]:
    """What the answer of each class is, as the first training row with it writes it."""
    first = [looked.pool.gold.index(k) for k in range(len(looked.pool.names))]
    format = looked.text.renderer.format
    return [answer_of(format.completed(looked.pool.rows[row])) for row in first]


def _of_rows(learning: Learning, total: int, seed: int) -> tuple[float, float]:
    def at(rows: Sequence[int]) -> float:
        return learning.at(total, torch.tensor(rows))

    return bootstrap(range(len(learning.right)), at, seed)


def _wider(middle: float, low: float, high: float, spread: float) -> tuple[float, float]:
    return middle - math.hypot(middle - low, spread), middle + math.hypot(high - middle, spread)


def _named(shots: int) -> str:
    return "1 demonstration" if shots == 1 else f"{shots} demonstrations"
