"""What is told of the rewards of pairs while they are learnt."""

from __future__ import annotations

from torch import Tensor

from lrft.core.run import Run


def record_rewards(run: Run, chosen: Tensor, rejected: Tensor) -> None:
    """Means over the step so far, as tensors on the device: nothing here waits for it."""
    margin = chosen - rejected
    found = {
        "reward_margin": margin,
        "reward_accuracy": (margin > 0).float(),
        "reward_chosen": chosen,
    }
    pairs = run.metrics.get("pairs", 0) + len(margin)
    for name, values in found.items():
        mean = run.metrics.get(name, 0.0)
        found[name] = mean + (values.sum() - len(margin) * mean) / pairs
    run.record(pairs=pairs, **found)
