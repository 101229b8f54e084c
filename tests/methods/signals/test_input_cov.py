"""The inputs' second moment: its own statements."""

from __future__ import annotations

import pytest
import torch

from lrft.core.stages import Tokens
from lrft.methods.signals.input_cov import InputCov


def tokens(count):
    return Tokens(torch.arange(count), torch.arange(count - 1))


def test_each_micro_batch_is_divided_by_its_largest_signed_entry():
    """-8 is larger in size, but the largest entry is 2: the authors take the maximum first and its size then."""
    x = torch.tensor([[2.0, -8.0], [1.0, 0.0]])
    cov = InputCov()
    cov.update(x, None, tokens(2))
    torch.testing.assert_close(cov.result(), (x / 2).mT @ (x / 2))


def test_it_is_the_mean_over_micro_batches_whatever_their_scale():
    x = torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    one, two = InputCov(), InputCov()
    one.update(x, None, tokens(2))
    for scale in (1.0, 100.0):
        two.update(scale * x, None, tokens(2))
    torch.testing.assert_close(two.result(), one.result())


def test_inputs_without_a_scale_are_refused():
    with pytest.raises(ValueError, match="finite"):
        InputCov().update(torch.zeros(3, 2), None, tokens(3))
