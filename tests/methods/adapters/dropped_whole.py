"""What a method promises that drops its whole change with a probability, `module_dropout`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.adapted import Adapted


def check_dropped_or_left(site: Adapted, weight: Tensor) -> None:
    """With `module_dropout: 0.3` on `weight` (out, in): 100 passes have the whole change or none, and its gradients."""
    x = torch.randn(3, weight.shape[1])
    base, whole = F.linear(x, weight), F.linear(x, site.merged_weight())
    kept = []
    for _ in range(100):
        site.zero_grad()
        y = site(x)
        kept.append(not torch.allclose(y, base))
        torch.testing.assert_close(y, whole if kept[-1] else base, atol=1e-3, rtol=1e-4)
        y.square().sum().backward()
        assert all(bool(p.grad.any()) == kept[-1] for p in site.adapter.parameters())
    assert 55 <= sum(kept) <= 85
    torch.testing.assert_close(site.eval()(x), whole, atol=1e-3, rtol=1e-4)
