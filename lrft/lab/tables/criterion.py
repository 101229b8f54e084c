"""A criterion: what one arm must show against another, stated before anything is run. No torch here."""

from __future__ import annotations

from lrft.registry.config import Field, Literal, Section, model_validator


class Criterion(Section):
    """What one arm must show against another. All conditions that are written must hold."""

    metric: str = Field(
        "eval_loss",
        min_length=1,
        description="key of metrics.jsonl at the last step, `KEY@STEP` at that step, or dotted key of result.json",
    )
    against_metric: str | None = Field(
        None,
        min_length=1,
        description="what of the other arm it is compared with, where that is another metric",
    )
    better: Literal["lower", "higher"] = "lower"
    arm: str = Field(min_length=1, description="label of the arm that the claim is about")
    against: str = Field(min_length=1, description="label of the arm it is compared with")
    at_most_ratio: float | None = Field(
        None, gt=0, description="largest mean of arm / mean of against; above 1 for `not much worse than`"
    )
    at_least_ratio: float | None = Field(
        None, gt=1, description="smallest mean of arm / mean of against, for better: higher"
    )
    at_least_gain: float | None = Field(
        None, description="smallest mean gain, in the metric's unit; below 0 for `not much worse than`"
    )
    reaches_within: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the steps within which the smoothed metric comes to where that of the other ends; of one "
        "that has a line every step, such as loss",
    )
    all_seeds: bool = Field(False, description="the arm must be better at every seed")
    everywhere: bool = Field(
        False, description="of a metric with keys (layers, steps): no worse at any key of any seed"
    )

    @model_validator(mode="after")
    def _decides_something(self) -> Criterion:
        ratios = [self.at_most_ratio, self.at_least_ratio, self.at_least_gain]
        if self.reaches_within is not None:
            ratios.append(self.reaches_within)
            others = self.all_seeds or self.everywhere or sum(one is not None for one in ratios) > 1
            if others or self.better == "higher" or self.against_metric:
                raise ValueError("reaches_within stands alone, of one metric that falls")
        if all(one is None for one in ratios) and not self.all_seeds and not self.everywhere:
            raise ValueError(
                "needs a condition: at_most_ratio, at_least_ratio, at_least_gain, reaches_within, all_seeds: true or "
                "everywhere: true"
            )
        if self.everywhere and (self.all_seeds or any(one is not None for one in ratios)):
            raise ValueError("everywhere stands alone; write other conditions as criteria of their own")
        if self.at_most_ratio is not None and self.better == "higher":
            raise ValueError(
                "at_most_ratio is for better: lower; use at_least_ratio, or swap arm and against"
            )
        if self.at_least_ratio is not None and self.better == "lower":
            raise ValueError(
                "at_least_ratio is for better: higher; use at_most_ratio, or swap arm and against"
            )
        if self.arm == self.against and self.against_metric in (None, self.metric):
            raise ValueError(
                f"arm and against are both {self.arm!r}; name two arms, or another against_metric"
            )
        return self

    @property
    def other_metric(self) -> str:
        """The metric of the arm it is compared with."""
        return self.against_metric or self.metric


def stated(criterion: Criterion) -> str:
    """The criterion as a sentence, as it was stated beforehand."""
    conditions = []
    if criterion.at_most_ratio is not None:
        conditions.append(f"at most {criterion.at_most_ratio:g} times as large")
    if criterion.at_least_ratio is not None:
        conditions.append(f"at least {criterion.at_least_ratio:g} times as large")
    if criterion.at_least_gain is not None:
        conditions.append(f"better by at least {criterion.at_least_gain:g} on average")
    if criterion.reaches_within is not None:
        conditions.append(
            f"smoothed, comes to where it ends within {criterion.reaches_within:g} of the steps"
        )
    if criterion.all_seeds:
        conditions.append(f"{criterion.better} at every seed")
    if criterion.everywhere:
        opposite = {"lower": "higher", "higher": "lower"}[criterion.better]
        conditions.append(f"{opposite} nowhere")
    other = f"{criterion.against_metric} of " if criterion.against_metric else ""
    return f"{criterion.metric} of {criterion.arm}, against {other}{criterion.against}: {' and '.join(conditions)}"
