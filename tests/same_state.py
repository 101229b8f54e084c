"""Nested states compared bit for bit."""

import torch

from lrft.training.flatten import flatten


def same(a: object, b: object) -> bool:
    """Whether two nested states are bit for bit the same."""
    (at, av), (bt, bv) = flatten(a), flatten(b)
    return av == bv and at.keys() == bt.keys() and all(torch.equal(at[key], bt[key]) for key in at)
