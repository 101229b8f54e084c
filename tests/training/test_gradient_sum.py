"""Gradients summed in buckets during the backward pass are those of one sum after it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.training import gradient_sum
from lrft.training.gradient_sum import GradientSum
from tests.launched import launched
from tests.training.sums_on_two_processes import UNEVEN, Model


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("sums") / "part"
    done = launched(Path(__file__).with_name("sums_on_two_processes.py"), out)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}-{rank}.pt") for rank in range(2)]


def same(ours: dict, theirs: dict) -> bool:
    assert ours.keys() == theirs.keys()
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in ((ours[name], theirs[name]) for name in ours)
    )


@pytest.mark.parametrize("case", UNEVEN)
def test_buckets_give_the_sum_of_one_message_to_the_last_bit(found, case):
    first, second = (part[case] for part in found)
    assert same(first["buckets"], first["flat"])
    assert same(first["whole"], first["flat"])
    assert same(first["buckets"], second["buckets"])
    assert same(first["again"], first["buckets"])
    for name, parameter in Model().named_parameters():
        gradient = first["buckets"][name]
        assert gradient is None or (gradient.dtype, gradient.shape) == (parameter.dtype, parameter.shape)


@pytest.mark.parametrize("case", UNEVEN)
def test_what_has_a_gradient_on_no_process_has_none_and_what_has_one_anywhere_has_its_own(found, case):
    used = {"gate.weight", "gate.bias"} if any(gated for part in UNEVEN[case] for _, gated in part) else set()
    for part in found:
        without = {name for name, gradient in part[case]["buckets"].items() if gradient is None}
        assert without == {"rests", "gate.weight", "gate.bias"} - used


def test_complete_buckets_are_sent_while_the_backward_pass_runs(found):
    """The first to be complete hold what backward reaches first; the tensor that nothing reaches holds up its own."""
    for part in found:
        assert part["even"]["counts"][0] > 3
        assert part["even"]["counts"][2] == 1
    assert found[1]["one has none"]["counts"][1] == 0


def overlapping(model: Model, monkeypatch, bucket_bytes: int) -> tuple[list[int], list[int]]:
    """Numbers in each message, and how many parameters had no gradient yet when it was sent."""
    sent: list[int] = []
    waiting: list[int] = []

    def begin(flat):
        sent.append(flat.numel())
        waiting.append(sum(parameter.grad is None for parameter in model.layers.parameters()))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(gradient_sum, "_begin_sum", begin)
    gradients = GradientSum(list(model.layers.parameters()), bucket_bytes)
    with gradients.overlapped():
        model(torch.randn(2, 24), False).backward()
    gradients.finish()
    return sent, waiting


def test_messages_go_in_order_before_the_first_layers_have_their_gradients(monkeypatch):
    sent, waiting = overlapping(Model(), monkeypatch, 4 * 24 * 24)
    # The bias comes before the weight in reverse, so that a layer is a bucket: its numbers and a count of each.
    assert sent == [24 * 25 + 2] * 6
    assert waiting == [10, 8, 6, 4, 2, 0]


def test_nothing_is_sent_before_the_last_backward_pass(monkeypatch):
    model = Model()
    began: list[int] = []
    monkeypatch.setattr(
        gradient_sum, "_begin_sum", lambda flat: began.append(1) or SimpleNamespace(wait=lambda: None)
    )
    gradients = GradientSum(list(model.layers.parameters()), 1)
    model(torch.randn(2, 24), False).backward()
    assert not began
    with gradients.overlapped():
        model(torch.randn(2, 24), False).backward()
    assert len(began) == 12
    model.zero_grad()
    model(torch.randn(2, 24), False).backward()  # no hook is left behind
    assert len(began) == 12


def test_without_overlap_all_is_sent_after_the_backward_pass(monkeypatch):
    began: list[int] = []
    monkeypatch.setattr(
        gradient_sum, "_begin_sum", lambda flat: began.append(1) or SimpleNamespace(wait=lambda: None)
    )
    model = Model()
    gradients = GradientSum(list(model.layers.parameters()), 1, overlap=False)
    with gradients.overlapped():
        model(torch.randn(2, 24), False).backward()
    assert not began
    gradients.finish()
    assert len(began) == 12


def test_a_gradient_that_grows_after_it_was_sent_is_a_fault(monkeypatch):
    monkeypatch.setattr(gradient_sum, "_begin_sum", lambda flat: SimpleNamespace(wait=lambda: None))
    parameter = nn.Parameter(torch.ones(3))
    gradients = GradientSum([parameter], 1)
    with gradients.overlapped():
        parameter.sum().backward()
        with pytest.raises(AssertionError, match="after it was sent"):
            parameter.sum().backward()
