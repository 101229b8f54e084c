"""What `lrft choose` finds, as choice.json holds it."""

from __future__ import annotations

from typing import TypedDict


class Strategy(TypedDict):
    """One way of adapting one base.

    Attributes:
        strategy: `fine-tuning`, or with how many demonstrations it is asked.
        low, high: of 95 %, over held-out rows; of what is predicted by a curve, refitted to each resample.
        measured: the accuracy was taken as it is; else it is predicted.
        training_tokens: that a training passes; 0 without one.
        question_tokens: of a question with its demonstrations and its answer, on average.
        score: accuracy - tradeoff * cost.
    """

    base: str
    strategy: str
    accuracy: float
    low: float
    high: float
    measured: bool
    training_tokens: float
    question_tokens: float
    cost: float
    score: float


class Head(TypedDict):
    """Of a base, the head on frozen states: its accuracy by training rows, and for how many it is predicted.

    Attributes:
        tried: what all sizes but the largest said of that, whose accuracy is the last one.
        predicted: before what past runs say of it.
    """

    rows: list[int]
    accuracies: list[float]
    of_rows: int
    tried: float
    predicted: float


class Shots(TypedDict):
    """Of a base, accuracy by demonstrations; a, b, tau of a - b exp(-n / tau), and the last n by all before."""

    shots: list[int]
    accuracies: list[float]
    ceiling: float | None
    gap: float | None
    scale: float | None
    tried: float | None


class PastRun(TypedDict):
    """A finished run: what its head predicts, and how often its held-out rows were right."""

    run: str
    predicted: float
    seen: float


class Past(TypedDict):
    """Past runs, how far predictions were off, and what is made of it.

    Attributes:
        spearman: of predicted and seen accuracies; None where either has no order.
        mae: mean absolute error as predicted.
        mae_left_out: the same where each run is calibrated by the others; None with fewer than four.
        slope, shift: accuracy = shift + slope * predicted; the slope is 1 with fewer than three.
        rmse: of the runs about that line, each by the others; None with fewer than four.
    """

    runs: list[PastRun]
    spearman: float | None
    mae: float
    mae_left_out: float | None
    slope: float
    shift: float
    rmse: float | None


class Choice(TypedDict):
    """All strategies, best first; `apart` says whether no other one's interval reaches up to it, costs taken off."""

    recipe: str
    classes: list[str]
    held_out_rows: int
    questions: int
    tradeoff: float
    unit: str
    strategies: list[Strategy]
    apart: bool
    heads: dict[str, Head]
    shots: dict[str, Shots]
    past: Past | None
    notes: list[str]
