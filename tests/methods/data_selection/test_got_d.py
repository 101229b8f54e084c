"""`got_d`: its gradients beside those of a linear programme, and the invariants of the calibration."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog

from lrft.core.data_selection import Measured
from lrft.ops.transport import sinkhorn
from lrft.registry.axes import DATA_SELECTIONS


def drawn(count, seed, shift=0.0):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) + shift


def gradients(pool, target, blur=0.01):
    method = DATA_SELECTIONS.get("got_d")(DATA_SELECTIONS.settings("got_d", blur=blur))
    found = method.choose(Measured([1] * len(pool), pool), Measured([1] * len(target), target), len(pool), 0)
    return {one.row: -one.score for one in found.chosen}


def costs(pool, target):
    a, b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (pool, target))
    return torch.cdist(a, b)


def exact(cost, a):
    """The cost of transport from mass a to even mass, as scipy's linear programme has it."""
    n, m = cost.shape
    sums = [np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]
    bounds = np.concatenate([a, np.full(m, a.sum() / m)])
    found = linprog(cost.numpy().ravel(), A_eq=np.concatenate(sums), b_eq=bounds)
    assert found.status == 0
    return found.fun


def test_a_gradient_is_what_the_exact_cost_changes_by_when_a_row_weighs_more():
    pool, target = drawn(9, 1), drawn(7, 2, 0.5)
    cost, even, step = costs(pool, target), np.full(9, 1 / 9), 1e-3
    base = exact(cost, even)
    for row, gradient in gradients(pool, target).items():
        moved = even - step / 8
        moved[row] = even[row] + step
        assert abs((exact(cost, moved) - base) / step - gradient) < 0.02


def test_the_entropic_cost_is_the_exact_one_as_it_grows_cold():
    cost = costs(drawn(12, 3), drawn(8, 4, 0.3))
    assert abs(sinkhorn(cost, 1e-4).value - exact(cost, np.full(12, 1 / 12))) < 2e-3
    warm = sinkhorn(cost, 0.1)
    plan = torch.exp((warm.f[:, None] + warm.g - cost) / 0.1) / (12 * 8)
    assert torch.allclose(plan.sum(0), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert (plan.sum(1) - 1 / 12).abs().sum() < 4e-3


def test_one_distribution_has_no_gradient_and_a_row_brought_nearer_has_a_lower_one():
    pool = drawn(10, 5)
    assert max(map(abs, gradients(pool, pool, 0.1).values())) < 0.05
    target = drawn(6, 6, 2.0)
    before = gradients(pool, target)
    far = max(before, key=before.__getitem__)
    pool[far] = target.mean(0)
    assert gradients(pool, target)[far] < before[far] - 0.1


def test_rows_near_the_target_are_not_all_that_is_taken():
    """Of two groups in the target the pool has much of one: what is taken first is of the other."""
    one, other = torch.eye(5)[0] * 20, torch.eye(5)[1] * 20
    pool = torch.cat([drawn(20, 7) + one, drawn(3, 8) + other])
    target = torch.cat([drawn(5, 9) + one, drawn(5, 10) + other])
    found = gradients(pool, target, 0.1)
    first = sorted(found, key=found.__getitem__)[:3]
    assert set(first) == {20, 21, 22}
