"""What is told of the rewards of pairs while they are learnt."""

from __future__ import annotations

from torch import Tensor

from lrft.core.run import Run
from lrft.methods.objectives._means import record_means


def record_rewards(run: Run, chosen: Tensor, rejected: Tensor) -> None:
    """Their means over the step so far."""
    margin = chosen - rejected
    sums = {
        "reward_margin": margin.sum(),
        "reward_accuracy": (margin > 0).float().sum(),
        "reward_chosen": chosen.sum(),
    }
    record_means(run, "pairs", len(margin), sums)
