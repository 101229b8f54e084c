"""The one node of a low-rank term beside the formula written out, gradients included, in float32."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from lrft.methods.quant.none import Dense
from lrft.ops.branch_matmul import multiply
from lrft.ops.dropout import drop
from lrft.ops.formed import Formed
from lrft.ops.low_rank import Branch, branch_linear
from lrft.ops.term import Gain, Term

IN, OUT, RANK, SCALE = 24, 40, 5, 0.7


def make(gain: bool, formed: bool, bias: bool, dropout: float, dtype=torch.float64):
    torch.manual_seed(0)
    base = Dense(torch.randn(OUT, IN, dtype=dtype), torch.randn(OUT, dtype=dtype) if bias else None)
    down, up = torch.randn(RANK, IN, dtype=dtype), torch.randn(OUT, RANK, dtype=dtype)
    g = 1 + 0.5 * torch.rand(OUT, dtype=dtype) if gain else None
    trained = [t.requires_grad_() for t in (down, up)]
    if g is not None:
        trained.append(g.requires_grad_())
    if not formed:
        return base, Branch(down, up, SCALE, g, dropout), trained, (down, up)
    # Factors that are three times what trains, so that `pull` is more than a copy.
    parts = Formed(
        (down, up),
        lambda dtype, a, b: ((3 * a).to(dtype), (3 * b).to(dtype)),
        lambda dtype, da, db, a, b: (3 * da, 3 * db),
    )
    return base, Branch(scale=SCALE, gain=g, dropout=dropout, formed=parts), trained, (3 * down, 3 * up)


def written_out(x, base, pair, gain, dropped):
    """gain (x W^T + s d down^T up^T) + b, and with dropout its published form with the base undropped."""
    down, up = pair
    d = x if dropped is None else dropped.whole(x)
    term = SCALE * d @ down.mT @ up.mT
    bias = 0 if base is None or base.bias is None else base.bias
    if base is None:
        return term
    W = base.weight()
    if gain is None:
        return x @ W.mT + term + bias
    if dropped is None:
        return gain * (x @ W.mT + term) + bias
    return x @ W.mT + (gain - 1) * (d @ W.mT) + gain * term + bias


CASES = [
    case
    for case in itertools.product([True, False], [True, False], [True, False], [0.0, 0.3])
    if case[2] or case[1]
]


@pytest.mark.parametrize(("gain", "formed", "bias", "dropout"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_every_gradient_are_those_of_the_formula(gain, formed, bias, dropout, dtype):
    base, branch, trained, pair = make(gain, formed, bias, dropout, dtype)
    x = torch.randn(3, 7, IN, dtype=dtype, requires_grad=True)
    seed = torch.randn(3, 7, OUT, dtype=dtype)
    torch.manual_seed(5)
    y = branch_linear(x, base, branch, training=True)
    got = torch.autograd.grad((y * seed).sum(), [x, *trained])
    torch.manual_seed(5)
    dropped = drop(x.detach(), dropout) if dropout else None
    expected = written_out(x, base, pair, branch.gain, dropped)
    wanted = torch.autograd.grad((expected * seed).sum(), [x, *trained])
    close = {"atol": 1e-10, "rtol": 1e-10} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 2e-4}
    # A method's own gradients are float32, the precision of what trains.
    loose = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(got[0], wanted[0], **close)
    for mine, theirs in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine.to(dtype), theirs, **loose)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_term_alone_is_the_formula_without_its_base(dropout):
    _, branch, trained, pair = make(False, False, False, dropout, torch.float32)
    x = torch.randn(4, IN, requires_grad=True)
    torch.manual_seed(5)
    y = branch_linear(x, None, branch, training=True)
    got = torch.autograd.grad(y.square().sum(), [x, *trained])
    torch.manual_seed(5)
    dropped = drop(x.detach(), dropout, shared=False) if dropout else None
    expected = written_out(x, None, pair, None, dropped)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(got, torch.autograd.grad(expected.square().sum(), [x, *trained]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("gain", "dropout"), list(itertools.product([True, False], [0.0, 0.3])))
def test_an_adapter_that_computes_in_another_precision_has_the_same_function(gain, dropout):
    base, branch, trained, _ = make(gain, False, True, dropout, torch.float32)
    x = torch.randn(3, 7, IN, requires_grad=True)
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 beside a float32 base goes the composed way
        torch.manual_seed(5)
        y = branch_linear(x.clone(), base, branch, training=True, dtype=dtype)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *trained])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=1e-3)


@pytest.mark.parametrize("gain", [True, False])
def test_in_bfloat16_it_is_as_near_the_formula_as_the_formula_in_bfloat16(gain):
    errors = {}
    base, branch, _, pair = make(gain, False, True, 0.3, torch.float32)
    x = torch.randn(64, IN)
    torch.manual_seed(5)
    dropped = drop(x.clone(), 0.3)
    exact = written_out(x, base, pair, branch.gain, dropped)
    half = Dense(base.weight().bfloat16(), base.bias.bfloat16())
    torch.manual_seed(5)
    errors["node"] = branch_linear(x.bfloat16(), half, branch, training=True).float() - exact
    low = [t.bfloat16() for t in pair]
    kept = dropped.to(torch.bfloat16)
    rounded = written_out(
        x.bfloat16(), half, low, None if branch.gain is None else branch.gain.bfloat16(), kept
    )
    errors["formula"] = rounded.float() - exact
    assert errors["node"].square().mean() <= 1.1 * errors["formula"].square().mean()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_gain_next_to_one_is_not_rounded_to_one(dropout):
    base = Dense((1 + torch.rand(OUT, IN)).bfloat16())
    factors = torch.zeros(RANK, IN), torch.zeros(OUT, RANK)
    gain = torch.full((OUT,), 1.003)  # 1 in bfloat16
    x = torch.rand(512, IN).bfloat16()
    y = branch_linear(x, base, Branch(*factors, 1.0, gain, dropout), training=True)
    assert (y.float().mean() / base(x).float().mean()).item() == pytest.approx(1.003, abs=2e-3)


def test_the_decoded_weight_is_taken_where_it_is_given_and_not_kept():
    base, branch, *_ = make(True, False, True, 0.0, torch.float32)
    decodes = []
    plain = base.weight
    base.weight = lambda: decodes.append(1) or plain()
    x = torch.randn(4, IN, requires_grad=True)
    y = branch_linear(x, base, branch, weight=plain())
    assert not decodes
    y.sum().backward()
    assert len(decodes) == 1


def test_nothing_of_the_size_of_the_weight_is_saved():
    base, branch, *_ = make(True, False, True, 0.3, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        branch_linear(torch.randn(4, IN, requires_grad=True), base, branch, training=True)
    assert (OUT, IN) not in kept


def any_map(pick: random.Random, width: int):
    """A map of some kind: its term, what trains in it, and its product written out from x and what is left of x."""
    out, rank, scale = pick.choice([1, 5, 16]), pick.choice([0, 1, 3]), pick.choice([1.0, -1.3])
    base = Dense(torch.randn(out, width).double(), torch.randn(out).double() if pick.random() < 0.4 else None)
    down, up = torch.randn(rank, width).double(), torch.randn(out, rank).double()
    down.requires_grad_(pick.random() < 0.75)
    up.requires_grad_(pick.random() < 0.75)
    parts = Formed(
        (down, up),
        lambda dtype, a, b: ((3 * a).to(dtype), (2 * b).to(dtype)),
        lambda dtype, da, db, a, b: (None if da is None else 3 * da, None if db is None else 2 * db),
        down.requires_grad,
        up.requires_grad,
        kept=pick.random() < 0.5,
    )
    m = (1 + torch.rand(out).double()).requires_grad_() if pick.random() < 0.7 else None
    norms = (lambda weight, _: 1 + weight.float().norm(dim=1)) if pick.random() < 0.5 else None

    def product(x, d):
        W, bias = base.weight(), 0 if base.bias is None else base.bias
        term = scale * d @ (3 * down).mT @ (2 * up).mT
        if m is None:
            return x @ W.mT + term + bias
        g = m if norms is None else m / norms(W, True)
        return x @ W.mT + (g - 1) * (d @ W.mT) + g * term + bias

    term = Term(base, parts, scale, None if m is None else Gain(m, norms))
    return term, [t for t in (down, up, m) if t is not None and t.requires_grad], product


@pytest.mark.parametrize("seed", range(30))
def test_maps_of_every_kind_in_one_node_are_each_its_formula(seed):
    """Ranks down to 0, frozen factors, gains over norms, kept factors, dropout, rows that are no whole memory."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    width, count = pick.choice([1, 7, 24]), pick.choice([1, 2, 4])
    terms, trained, products = zip(*(any_map(pick, width) for _ in range(count)), strict=True)
    x = torch.randn(7, 3, width).double().transpose(0, 1).requires_grad_(pick.random() < 0.8)
    dropped = drop(x, 0.4) if pick.random() < 0.5 else None
    ours = multiply(x, terms, dropped)
    d = x if dropped is None else dropped.whole(x)
    theirs = [product(x, d) for product in products]
    seeds = [torch.randn(3, 7, 1).double().expand_as(y) for y in ours]
    wanted = [t for t in (x, *itertools.chain(*trained)) if t.requires_grad]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    if not wanted:
        return
    found, expected = (
        torch.autograd.grad(ys, wanted, seeds, allow_unused=True, materialize_grads=True)
        for ys in (ours, theirs)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
