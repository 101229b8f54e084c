"""Products in float32 where a processor multiplies half precision more slowly: where that is, and what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.frozen import FrozenLinear
from lrft.methods.quant.none import Dense
from lrft.ops import products
from lrft.ops.attention import attend
from lrft.ops.attention_blocks import Rule
from lrft.ops.branch_matmul import multiply
from lrft.ops.dense_matmul import dense_linear, grouped_linear
from lrft.ops.formula import formula_linear
from lrft.ops.loss import Head, linear_cross_entropy, target_logprobs
from lrft.ops.low_rank import Branch, branch_linear
from lrft.ops.products import HALF, linear, matmul, multiplying, outer, slow_halves, working

TOKENS, IN, OUT, RANK = 96, 48, 40, 4
SLOW, FAST = (torch.bfloat16,), ()
ROUNDING = 2.0**-8  # of a bfloat16


def told(vendor: str, flags: str) -> str:
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n"
    return core + core.replace("0", "1")


@pytest.mark.parametrize(
    ("cpuinfo", "slow"),
    [
        (told("GenuineIntel", "avx2"), HALF),
        (told("GenuineIntel", "avx512f avx512_bf16"), HALF),
        (told("GenuineIntel", "avx512f avx512_bf16 avx512_fp16"), (torch.bfloat16,)),
        (told("GenuineIntel", "avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile"), ()),
        (told("AuthenticAMD", "avx512f avx512_bf16"), (torch.float16,)),
        (told("AuthenticAMD", "avx2"), HALF),
        ("", HALF),
    ],
)
def test_which_half_precisions_a_processor_multiplies_more_slowly(cpuinfo, slow):
    assert slow_halves(cpuinfo) == slow


def test_another_architecture_or_system_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(products.platform, "machine", lambda: "arm64")
    assert products._slow_here() == ()
    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products, "Path", lambda _: tmp_path / "no such file")
    assert products._slow_here() == ()


def test_few_rows_and_other_precisions_and_devices_keep_theirs():
    with multiplying(SLOW):
        assert working(torch.empty(32, IN, dtype=torch.bfloat16)) == torch.float32
        assert working(torch.empty(4, 8, IN, dtype=torch.bfloat16)) == torch.float32
        assert working(torch.empty(31, IN, dtype=torch.bfloat16)) == torch.bfloat16
        assert working(torch.empty(32, 0, dtype=torch.bfloat16)) == torch.bfloat16
        assert working(torch.empty(32, IN, dtype=torch.float16)) == torch.float16
        assert working(torch.empty(32, IN, dtype=torch.float64)) == torch.float64
        assert working(torch.empty(32, IN, dtype=torch.bfloat16, device="meta")) == torch.bfloat16
    with multiplying(FAST):
        assert working(torch.empty(32, IN, dtype=torch.bfloat16)) == torch.bfloat16


def half(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def base(bias: bool = False, out: int = OUT) -> FrozenLinear:
    return Dense(half(out, IN, scale=0.2), half(out) if bias else None)


def trained(*shape: int) -> torch.Tensor:
    """Float32 masters that bfloat16 holds as they are, so that both precisions compute with the same numbers."""
    return half(*shape, scale=0.3).float().requires_grad_()


def _plain():
    return base(bias=True), []


def _branch(gain: bool = False, dropout: float = 0.0, bias: bool = False):
    factors = [trained(RANK, IN), trained(OUT, RANK)]
    gains = [(1 + 0.25 * torch.rand(OUT)).requires_grad_()] if gain else []
    branch = Branch(*factors, 2.0, *(gains or [None]), dropout)
    frozen = base(bias)
    return lambda x: branch_linear(x, frozen, branch, training=True), factors + gains


def _alone():
    factors = [trained(RANK, IN), trained(OUT, RANK)]
    branch = Branch(*factors, 2.0)
    return lambda x: branch_linear(x, None, branch), factors


def _siblings():
    bases, factors = [base(bias=True), base(out=16)], []
    parts = []
    for frozen in bases:
        pair = [trained(RANK, IN), trained(frozen.out_features, RANK)]
        factors += pair
        parts.append(Branch(*pair, 2.0).term(frozen))
    return lambda x: torch.cat(multiply(x, parts), dim=-1), factors


def _formula():
    frozen, gain = base(bias=True), trained(OUT, 1)
    return lambda x: formula_linear(x, frozen, lambda W: W * gain, [gain]), [gain]


def _dense():
    weight, bias = trained(OUT, IN), half(OUT)
    return lambda x: dense_linear(x.view(4, -1, IN), weight, bias), [weight]


def _grouped():
    """Of four groups one is empty and one has too few rows to be widened."""
    weights, ends = trained(4, OUT, IN), torch.tensor([40, 40, 50, TOKENS], dtype=torch.int32)
    return lambda x: grouped_linear(x, weights.bfloat16(), ends), [weights]


def _attention():
    mixed = half(IN, 3 * IN, scale=0.2)

    def attended(x):
        q, k, v = (x @ mixed).view(1, TOKENS, 3, 6, 8).unbind(2)
        documents = ((0, 0, 20), (0, 20, TOKENS))
        return attend(*(part.transpose(1, 2) for part in (q, k[:, :, :2], v[:, :, :2])), documents, Rule(0.3))

    return attended, []


NODES = {
    "frozen": _plain,
    "low-rank": _branch,
    "low-rank, bias": lambda: _branch(bias=True),
    "gain": lambda: _branch(gain=True),
    "gain, bias": lambda: _branch(gain=True, bias=True),
    "dropout": lambda: _branch(dropout=0.25),
    "gain, dropout": lambda: _branch(gain=True, dropout=0.25, bias=True),
    "term alone": _alone,
    "siblings": _siblings,
    "formula": _formula,
    "dense": _dense,
    "grouped": _grouped,
    "attention": _attention,
}


def value_and_gradients(make, slow) -> list[torch.Tensor]:
    torch.manual_seed(0)
    node, parameters = make()
    x = half(TOKENS, IN).requires_grad_()
    torch.manual_seed(1)
    with multiplying(slow):
        y = node(x)
        seed = half(*y.shape)
        grads = torch.autograd.grad(y, [x, *parameters], seed)
    assert y.dtype == grads[0].dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads[1:])
    return [y.detach(), *grads]


@pytest.mark.parametrize("name", NODES)
def test_value_and_every_gradient_are_those_in_half_precision_but_for_rounding(name):
    for wide, narrow in zip(*(value_and_gradients(NODES[name], slow) for slow in (SLOW, FAST)), strict=True):
        assert wide.abs().max() > 0.1
        # A few roundings each: of the term, of the product, of their sum.
        assert (wide.float() - narrow.float()).norm() < 2 * ROUNDING * narrow.float().norm()


def test_a_product_is_the_exact_one_rounded_once():
    torch.manual_seed(0)
    x, W, b, y = half(TOKENS, IN), half(OUT, IN), half(OUT), half(TOKENS, OUT)
    exact = x.double() @ W.double().mT
    with multiplying(SLOW):
        results = [
            (linear(x, W, b), exact + b.double()),
            (matmul(x, W.mT), exact),
            (products.added(y, x, W.mT), y.double() + exact),
            (outer(y, x), y.double().mT @ x.double()),
        ]
    for found, wanted in results:
        step = ROUNDING if found.dtype == torch.bfloat16 else 1e-6
        # The float32 sum is off by its own rounding, which decides only between neighbours.
        torch.testing.assert_close(found.double(), wanted, rtol=step * 1.01, atol=1e-5)


@pytest.mark.parametrize("slow", [SLOW, FAST])
def test_rows_of_every_group_meet_its_own_weight(slow):
    torch.manual_seed(0)
    x, weights = half(TOKENS, IN), half(4, OUT, IN)
    with multiplying(slow):
        y = grouped_linear(x, weights, torch.tensor([40, 40, 50, TOKENS], dtype=torch.int32))
    wanted = torch.cat([x[:40] @ weights[0].mT, x[40:50] @ weights[2].mT, x[50:] @ weights[3].mT])
    assert (y.float() - wanted.float()).norm() < ROUNDING * wanted.float().norm()


def head(vocabulary: int, bias: bool) -> Head:
    module = nn.Linear(IN, vocabulary, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    return Head(module)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_head_widened_in_slices(monkeypatch, bias, smoothing):
    monkeypatch.setattr(
        "lrft.ops.frozen_head.WIDENED", 50 * IN
    )  # 130 rows are three slices, the last one short
    torch.manual_seed(0)
    it = head(130, bias)
    hidden, targets = half(TOKENS, IN), torch.randint(130, (TOKENS,))
    x = hidden.double().requires_grad_()
    logits = x @ it.module.weight.double().mT + (it.module.bias.double() if bias else 0)
    wanted = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(wanted, x)
    for slow in (SLOW, FAST):
        near = hidden.clone().requires_grad_()
        with multiplying(slow):
            loss = linear_cross_entropy(near, it, targets, chunk=20, smoothing=smoothing)
            (gradient,) = torch.autograd.grad(loss, near)
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-3, atol=0)
        assert (gradient.double() - slope).norm() < ROUNDING * slope.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_a_frozen_head_are_the_modules_own_and_take_no_graph_away(monkeypatch, bias):
    monkeypatch.setattr("lrft.ops.frozen_head.WIDENED", 50 * IN)
    torch.manual_seed(0)
    it, hidden = head(130, bias), half(2, TOKENS, IN)
    targets = torch.randint(130, (2 * TOKENS,))
    with multiplying(SLOW):
        assert it.logits(hidden.clone().requires_grad_()).requires_grad
        with torch.no_grad():
            logits, logprobs = it.logits(hidden), target_logprobs(hidden.flatten(0, 1), it, targets)
    exact = hidden.double() @ it.module.weight.double().mT + (it.module.bias.double() if bias else 0)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.double(), exact, rtol=ROUNDING * 1.01, atol=1e-5)
    wanted = exact.flatten(0, 1).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, rtol=0, atol=0.02)
