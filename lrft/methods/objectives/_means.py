"""What is told of a step while its micro-batches are gone through."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lrft.core.run import Run


def record_means(run: Run, counter: str, count: int | Tensor, sums: Mapping[str, Tensor]) -> None:
    """Means over the step so far, as tensors on the device: nothing here waits for it.

    Args:
        counter: the metric that counts what is averaged over.
        count: how many more there are.
        sums: metric -> its sum over these.
    """
    total = run.metrics.get(counter, 0) + count
    found = {}
    for name, summed in sums.items():
        mean = run.metrics.get(name, 0.0)
        found[name] = mean + (summed - count * mean) / total
    run.record(**{counter: total}, **found)
