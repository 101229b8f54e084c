"""Whether groups of rows are answered equally well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrft.data.example import Row
from lrft.data.rows import Rows
from lrft.evaluation.intervals import DRAWS, quantile
from lrft.evaluation.probabilities import expected_calibration_error
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import OfRows, TaskResult, each
from lrft.evaluation.tasks.multiple_choice import MultipleChoice
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import DataError, RecipeError


class Answered(NamedTuple):
    """A row: its group, its label and the one it is given, and that one's probability among the labels."""

    group: str
    gold: str
    given: str
    sure: float


Rate = tuple[Tensor, Tensor]
"""Which rows count as hits, and which a rate is within, (n,) bool each."""

AT_ONCE = 2_000_000  # rows of resamples


@TASKS.register
class Fairness(OfRows):
    """Whether groups of rows, told by a column, are answered equally well.

        acc/G        = share of rows of group G whose gold label has the largest log p of its sentence
        acc_gap      = max over G of acc/G - min
        positive_gap = the same of the share that is given the label `positive`      (demographic parity)
        odds_gap     = the larger of the gaps of P(positive | gold positive) and P(positive | gold another)
        ece/G        = calibration error of the given label's softmax over the labels, in 15 bins

    Prompt: `fairness-1`: rows as `multiple_choice` reads them, with a column `group` beside; those of `data.eval`, or
    the task's own `data` and `format`.
    Score: `_low` and `_high` of a gap are a bootstrap over all rows, 2,000 draws, 95 %; `_chance` is what 95 % of 2,000
    random assignments of the groups stay below, since a largest gap of small groups is never 0. Groups of fewer than
    `smallest` rows are left out and counted; `n/G` is what the others have. The last three need `positive`.
    Source: the definitions are standard; gaps after low-rank training: Das et al., "Low-rank finetuning for LLMs: A
    fairness perspective", 2024, arXiv 2405.18572, and, with no consistent gap, Ding et al., 2024, arXiv 2405.17512.
    """

    aliases = {
        "group_fairness demographic_parity equalized_odds": "tasks: [{method: fairness, group: COLUMN}]",
    }

    version = "fairness-1"
    better = {"acc_gap": "lower", "positive_gap": "lower", "odds_gap": "lower"}

    class Config(OfRows.Config):
        group: str = Field("group", description="column that says a row's group")
        positive: str | None = Field(None, description="label whose share is compared too")
        smallest: int = Field(30, gt=0, description="rows that a group needs to be compared")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Score the labels of every row, then compare the groups.

        Raises:
            DataError: a row has no group, or fewer than two groups are large enough.
        """
        config = self.config
        rows = self.rows(subject, limit)
        groups = each(rows, lambda row: group_of(row, config.group))
        task = MultipleChoice(
            MultipleChoice.Config(method=MultipleChoice.name, data=config.data, format=config.format)
        )
        found = task.run(subject, limit)
        answered = [
            Answered(group, str(one["reference"]), str(one["output"]), _sure(one["label_logprobs"]))
            for group, one in zip(groups, found.samples, strict=True)
        ]
        labels = {one.gold for one in answered} | {one.given for one in answered}
        if config.positive is not None and config.positive not in labels:
            raise RecipeError(
                f"{config.positive!r} is no label of these rows; they have {', '.join(sorted(labels))}",
                "eval.tasks.fairness.positive",
            )
        metrics, kept = compare_groups(answered, config.smallest, config.positive, rows)
        return self.result(subject, rows, metrics, n=kept)


def group_of(row: Row, column: str) -> str:
    """The group of a row.

    Raises:
        DataError: it has none.
    """
    value = row.get(column)
    if value is None or isinstance(value, list | dict):
        raise DataError(f"no group in column {column!r}; this row has {', '.join(row)}")
    return str(value)


def compare_groups(
    rows: Sequence[Answered], smallest: int, positive: str | None, of: Rows | None = None
) -> tuple[dict[str, float], int]:
    """The numbers, and how many rows they are of.

    Raises:
        DataError: fewer than two groups are large enough.
    """
    sizes = Counter(row.group for row in rows)
    large = sorted(group for group, n in sizes.items() if n >= smallest)
    if len(large) < 2:
        told = ", ".join(f"{group} {n}" for group, n in sorted(sizes.items()))
        where = "" if of is None else f"{of.origin}: "
        raise DataError(f"{where}two groups of {smallest} rows or more are needed, and there are {told}")
    kept = [row for row in rows if row.group in large]
    metrics: dict[str, float] = {"left_out": len(rows) - len(kept)}
    for group in large:
        mine = [row for row in kept if row.group == group]
        sure = torch.tensor([row.sure for row in mine])
        right = torch.tensor([row.given == row.gold for row in mine])
        ece = expected_calibration_error(sure, right)
        metrics |= {f"n/{group}": len(mine), f"acc/{group}": _accuracy(mine), f"ece/{group}": ece}
    for name, rates in _rates(kept, positive).items():
        metrics |= _gap(name, torch.tensor([large.index(row.group) for row in kept]), rates, len(large))
    return metrics, len(kept)


def _rates(rows: Sequence[Answered], positive: str | None) -> dict[str, list[Rate]]:
    """Of each gap the rates that it is the largest gap of."""
    everywhere = torch.ones(len(rows), dtype=torch.bool)
    found: dict[str, list[Rate]] = {"acc": [(torch.tensor([r.given == r.gold for r in rows]), everywhere)]}
    if positive is not None:
        given = torch.tensor([row.given == positive for row in rows])
        gold = torch.tensor([row.gold == positive for row in rows])
        found |= {"positive": [(given, everywhere)], "odds": [(given, gold), (given, ~gold)]}
    return found


def _gap(name: str, group: Tensor, rates: Sequence[Rate], groups: int) -> dict[str, float]:
    """The gap, its bootstrap interval over rows, and what chance makes; resamples without a rate are left out."""
    n, generator = len(group), torch.Generator().manual_seed(0)
    resampled, shuffled = [], []
    for draws in _chunks(n):
        order = torch.randint(n, (draws, n), generator=generator)
        resampled += gaps(
            group[order], [(hit[order], within[order]) for hit, within in rates], groups
        ).tolist()
        order = torch.rand(draws, n, generator=generator).argsort(dim=1)
        shuffled += gaps(group[order], rates, groups).tolist()
    known = [[value for value in one if not math.isnan(value)] for one in (resampled, shuffled)]
    low, high = (quantile(known[0], share) if known[0] else math.nan for share in (0.025, 0.975))
    return {
        f"{name}_gap": float(gaps(group, rates, groups)),
        f"{name}_gap_low": low,
        f"{name}_gap_high": high,
        f"{name}_gap_chance": quantile(known[1], 0.95) if known[1] else math.nan,
    }


def gaps(group: Tensor, rates: Sequence[Rate], groups: int) -> Tensor:
    """The largest gap of the rates, (..., n) -> (...); no number where a group has no row that a rate is within."""
    found = []
    for hit, within in rates:
        of_group = [
            (hit & within & (group == k)).sum(-1) / (within & (group == k)).sum(-1) for k in range(groups)
        ]
        values = torch.stack(of_group)
        found.append(values.amax(0) - values.amin(0))
    return torch.stack(found).amax(0)  # amax keeps what is no number


def _chunks(n: int) -> list[int]:
    most = max(1, AT_ONCE // n)
    return [min(most, DRAWS - start) for start in range(0, DRAWS, most)]


def _accuracy(rows: Sequence[Answered]) -> float:
    return sum(row.given == row.gold for row in rows) / len(rows)


def _sure(logprobs: object) -> float:
    assert isinstance(logprobs, dict)
    values = torch.tensor(list(logprobs.values()), dtype=torch.float64)
    return float(torch.softmax(values, 0).max())
