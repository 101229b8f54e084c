"""The k-th largest number of more than one tensor."""

import torch

from lrft.ops.order import kth_largest


def test_it_is_that_of_a_sorted_list_also_with_ties_and_zeros():
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 3, generator=draws) * 10.0**power for power in (-20, 0, 3)]
    parts.append(torch.tensor([0.0, -0.0, 2.5, -2.5]))
    whole = torch.cat([part.flatten() for part in parts]).abs().sort(descending=True).values
    for k in (1, 2, 7, 150, 300, len(whole)):
        assert kth_largest(lambda: parts, k) == float(whole[k - 1])
    assert kth_largest(lambda: parts, 0) == float("inf") and kth_largest(lambda: parts, 10**6) == 0.0
