"""The kernels of this machine beside the plain code that they stand for: values, gradients, bits on other threads."""

import math

import pytest
import torch

from lrft.build.native import native_kernels
from lrft.methods.adapters.nola import uniform
from lrft.methods.quant.none import Dense
from lrft.model.gguf import cache_root
from lrft.ops import elementwise
from lrft.ops.attention import attend
from lrft.ops.attention_blocks import Rule
from lrft.ops.branch_matmul import multiply
from lrft.ops.dropout import drop
from lrft.ops.dropped_products import Packed
from lrft.ops.gains import column_dots
from lrft.ops.loss import Head, linear_cross_entropy
from lrft.ops.low_rank import Branch
from lrft.ops.native import Kernels, Shapes, kernels_for, using
from lrft.ops.products import multiplying
from lrft.registry.axes import QUANTIZERS
from tests.each import each

WIDE, HALF = torch.float32, torch.bfloat16
# Relative to the largest number of what is compared: in bfloat16 the plain code rounds several times, the kernels once.
TOLERANCE = {WIDE: 2e-6, HALF: 1.5e-2}


@pytest.fixture(scope="module")
def kernels():
    found = native_kernels(cache_root().parent / "compiled")
    if not isinstance(found, Kernels):
        pytest.skip(f"no kernels on this machine: {found}")
    return found


class Seen(Kernels):
    """Passes on what it is asked, and remembers it."""

    def __init__(self, kernels):
        super().__init__(())
        self.kernels, self.asked = kernels, []

    def __call__(self, name, *given):
        self.asked.append(name)
        self.kernels(name, *given)

    def room(self, name, size):
        return self.kernels.room(name, size)


def close(found, wanted, dtype):
    wanted = wanted.float()
    bound = TOLERANCE[dtype] * max(float(wanted.abs().max()), 1e-6)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=bound)


def beside(kernels, names, dtype, run):
    """The results of `run`, plain and by the kernels, which it has to ask for by these names."""
    plain = run()
    seen = Seen(kernels)
    with using(seen):
        ours = run()
    assert set(names) <= set(seen.asked), seen.asked
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        close(one, other, dtype)
    return ours


def pulled(y, *of):
    torch.manual_seed(1)
    return [y.detach(), *torch.autograd.grad(y, of, torch.randn(y.shape).to(y.dtype))]


def drawn(*shape, dtype=WIDE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@each("dtype", [WIDE, HALF])
@each("size", [3, 16, 33, 64])
def test_norms(kernels, dtype, size):
    x, weight = drawn(3, 5, size, dtype=dtype), torch.rand(size).to(dtype)
    for first in (False, True):
        scales = weight.float() if first else weight
        beside(
            kernels,
            ("normalize", "normalize_back"),
            dtype,
            lambda scales=scales, first=first: pulled(elementwise.rms_norm(x, scales, 1e-5, first), x),
        )


@each("dtype", [WIDE, HALF])
def test_gates(kernels, dtype):
    gate, up = drawn(7, 33, dtype=dtype), drawn(7, 33, dtype=dtype, seed=2)
    beside(kernels, ("gate", "gate_back"), dtype, lambda: pulled(elementwise.gated(gate, up), gate, up))


def test_gates_of_large_numbers_and_of_none(kernels):
    gate = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, math.inf, math.nan])
    up = torch.ones(9)
    with using(kernels), torch.no_grad():
        h = elementwise.gate_up(gate, up)
    torch.testing.assert_close(h, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30, equal_nan=True)


@each("dtype", [WIDE, HALF])
@each("size", [2, 16, 40, 64])
def test_rotations(kernels, dtype, size):
    x = drawn(2, 5, 3, size, dtype=dtype).transpose(1, 2)
    for rows in (1, 2):
        cos, sin = torch.rand(rows, 1, 5, size).to(dtype), torch.rand(rows, 1, 5, size).to(dtype)
        beside(
            kernels,
            ("rotate",),
            dtype,
            lambda cos=cos, sin=sin: pulled(elementwise.rotated(x, cos, sin), x),
        )


@each("dtype", [WIDE, HALF])
def test_sums_of_products_over_tokens(kernels, dtype):
    a, b = drawn(29, 1100, dtype=dtype).detach(), drawn(29, 1100, dtype=dtype, seed=2).detach()
    with torch.no_grad():
        (found,) = beside(kernels, ("column_dots",), dtype, lambda: [column_dots(a, b)])
    close(found, (a.double() * b.double()).sum(0), WIDE)  # products are not rounded


@each("dtype", [WIDE, HALF])
def test_the_loss_of_a_head(kernels, dtype):
    hidden, weight = drawn(37, 24, dtype=dtype), drawn(101, 24, dtype=dtype, seed=2).detach()
    targets = torch.arange(37) % 101
    module = torch.nn.Linear(24, 101, bias=False, dtype=dtype).requires_grad_(False)
    module.weight.copy_(weight)
    head = Head(module)
    found = beside(
        kernels,
        ("softmax_loss",),
        dtype,
        lambda: pulled(linear_cross_entropy(hidden, head, targets), hidden),
    )
    logits = hidden.double() @ weight.double().T
    close(found[0], torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), dtype)


def test_a_loss_that_is_no_number_stays_none(kernels):
    scores = torch.zeros(2, 40)
    scores[0, 7] = math.nan
    scores[1, 3] = 1e30
    losses = scores[[0, 1], [1, 2]]
    kernels("softmax_loss", scores, torch.tensor([1, 2]), losses, 2, 40)
    assert losses[0].isnan() and scores[0].isnan().all()
    assert losses[1] == pytest.approx(1e30) and scores[1, 3] == 1 and scores[1, 2] == -1


def test_random_numbers_of_a_sequence_are_the_same_to_the_bit(kernels):
    plain = uniform(2**32 - 50, 1001, 7)
    with using(kernels), torch.no_grad():
        assert torch.equal(uniform(2**32 - 50, 1001, 7), plain)


# documents, heads, heads of keys, a head's dimension, window
ATTENTIONS = {
    "grouped": (((0, 0, 130), (0, 130, 300)), 6, 2, 16, 0),
    "one head of keys, two rows, gaps": (((0, 0, 37), (0, 40, 150), (1, 3, 140)), 4, 1, 48, 0),
    "window": (((0, 0, 300),), 4, 4, 32, 70),
    "short window": (((0, 0, 200),), 2, 2, 16, 3),
    "long": (((0, 0, 700),), 2, 1, 64, 0),
    "short": (((0, 0, 1), (0, 1, 3), (1, 0, 5)), 3, 3, 80, 0),
    "many": (tuple((0, 70 * n, 70 * n + 70) for n in range(5)), 4, 2, 16, 0),
}


@each("dtype", [WIDE, HALF])
@each("case", ATTENTIONS)
def test_attention(kernels, dtype, case):
    documents, H, K, D, window = ATTENTIONS[case]
    B, L = max(row for row, *_ in documents) + 1, max(end for *_, end in documents)
    q, k, v = (
        drawn(B, L, heads, D, dtype=dtype, seed=n).transpose(1, 2) for n, heads in enumerate((H, K, K))
    )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with multiplying((HALF,)):
        beside(
            kernels,
            ("attend", "attend_back"),
            dtype,
            lambda: pulled(attend(*leaves, documents, Rule(D**-0.5, window)), *leaves),
        )


def test_attention_that_the_kernels_do_not_compute_goes_its_old_way(kernels):
    r, v = drawn(1, 2, 20, 16), drawn(1, 2, 20, 8)
    q = drawn(1, 2, 20, 24)
    ways = {
        "heads have 24 numbers, no multiple of 16": (q, q, Rule(0.2)),
        "keys have 16 numbers a head and values 8": (r, v, Rule(0.2)),
        "its scores have a soft cap": (r, r, Rule(0.2, softcap=5.0)),
        "it has dropout": (r, r, Rule(0.2, dropout=0.5)),
        "it has sinks": (r, r, Rule(0.2, sinks=torch.zeros(2))),
    }
    for why, (key, value, rule) in ways.items():
        seen = Seen(kernels)
        with using(seen):
            attend(key, key, value, ((0, 0, 20),), rule)
        assert not seen.asked and seen.missed == {"attention": why}


def test_what_goes_without_the_kernels_beside_attention_is_noted(kernels):
    x, gain, seen = drawn(2, 3, 8, 16), torch.ones(3, 1, 16), Seen(kernels)
    angles = torch.zeros(2, 3, 8, 16)
    with using(seen), torch.no_grad():
        elementwise._normalize(x, gain, 1e-6, False)
        elementwise._turn(x, angles, angles, back=False)
    assert not seen.asked and seen.missed == {
        "norms": "a gain has the shape (3, 1, 16), not (16,)",
        "rotations": "angles have the shape (2, 3, 8, 16) where states have (2, 3, 8, 16)",
    }


@each("shape", [(40, 33, 50), (3, 300, 700), (65, 16, 256)])
def test_products_of_what_was_dropped(kernels, shape):
    tokens, ins, outs = shape
    x, weight, dy = (
        drawn(*s, seed=n).detach() for n, s in enumerate([(tokens, ins), (outs, ins), (tokens, outs)])
    )
    by, bias = torch.rand(outs), torch.rand(outs)
    for share in (0.0, 0.06):
        dropped = torch.rand(tokens, ins) < share
        zeros = dropped.flatten().nonzero().flatten()
        packed = Packed(kernels, weight)
        y = x @ weight.T
        u = packed.kept_product(x, zeros, y, WIDE, by, bias)
        wanted = x.masked_fill(dropped, 0) @ weight.T
        close(u, wanted, WIDE)
        close(y, x @ weight.T + by * wanted + bias, WIDE)
        half = packed.kept_product(x, zeros, x @ weight.T, HALF, by, None)
        close(half, wanted, HALF)
        beside = torch.cat([x, x], dim=1)[:, :ins]  # rows that do not lie together
        assert torch.equal(packed.kept_product(beside, zeros, x @ weight.T, WIDE, by, bias), u)
        found = torch.ones(len(zeros))
        packed.add_dots(dy.T.contiguous().T, zeros, found)
        if len(zeros):
            close(found, 1 + (dy @ weight).flatten()[zeros], WIDE)


def test_half_numbers_are_rounded_as_torch_rounds_them(kernels):
    values = torch.cat(
        [torch.randn(1000), torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40, 3.4e38])]
    )
    weight, none = torch.zeros(len(values), 1), torch.tensor([], dtype=torch.int64)
    y = values[None].clone()
    u = Packed(kernels, weight).kept_product(torch.zeros(1, 1), none, y, HALF, torch.zeros(len(values)), None)
    assert torch.equal(u.isnan(), values[None].isnan())
    assert torch.equal(u.nan_to_num(), values[None].to(HALF).nan_to_num())


@each("documents", [((0, 0, 90), (0, 90, 200)), tuple((0, 20 * n, 20 * n + 20) for n in range(10))])
def test_the_number_of_threads_changes_no_bit(kernels, documents):
    before = torch.get_num_threads()
    hidden, weight = drawn(9, 16), drawn(50, 16, seed=2).detach()
    product = (
        hidden.detach() @ weight.T
    )  # torch's own, which follows the number of threads on some processors
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            q, k, v = (drawn(1, heads, 200, 16, seed=n) for n, heads in enumerate((4, 2, 2)))
            hidden = drawn(9, 16)
            with using(kernels):
                attended = pulled(attend(q, k, v, documents, Rule(0.25)), q, k, v)
                normed = pulled(elementwise.rms_norm(hidden, weight[0], 1e-5, True), hidden)
                y = product.clone()
                zeros = torch.tensor([3, 17, 40])
                packed, by = Packed(kernels, weight), weight[:, 0].contiguous()
                u = packed.kept_product(hidden.detach(), zeros, y, WIDE, by, None)
            found.append([*attended, *normed, y, u])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_where_they_do_not_apply(kernels):
    x = torch.ones(2, 2)
    with torch.no_grad():
        assert kernels_for(x) is None  # not asked for
        with using(kernels):
            assert kernels_for(x) is kernels
            assert kernels_for(x, x.half()) is None and kernels_for(x.half()) is None
            assert kernels_for(x.to("meta")) is None
        with using(Shapes()):
            assert kernels_for(x) is None and kernels_for(x.to("meta")) is not None
    with using(kernels):
        assert kernels_for(x) is None  # somebody asks for a graph of the parts


def test_a_second_derivative_of_attention_is_refused_and_not_wrong(kernels):
    q = drawn(1, 2, 20, 16)
    with using(kernels):
        y = attend(q, q, q, ((0, 0, 20),), Rule(0.25))
        (dq,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dq.sum().backward()


@each("quant_type", ["nf4", "fp4"])
@each("dtype", [WIDE, HALF])
@each("size", [32, 64, 1024])
def test_codes_of_four_bits_are_those_of_bitsandbytes(kernels, quant_type, dtype, size):
    pytest.importorskip("bitsandbytes")
    kind = QUANTIZERS.get(quant_type)
    weight = torch.randn(96, 2048, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0], weight[1, :40], weight[2, 5], weight[3, 7] = 0, 1e-39, math.nan, math.inf
    weight[4] = weight[5:6].mT[:2048, 0].round(decimals=1)  # many are alike
    for double in (False, True):
        config = kind.Config(method=quant_type, double_quant=double, block_size=size)
        theirs = kind(weight, None, config)
        seen = Seen(kernels)
        with using(seen):
            ours = kind(weight, None, config)
        assert ("encode_4bit" in seen.asked) is (
            quant_type == "nf4"
        )  # of the other codes do not rise with levels
        for (name, one), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), name


@each("dtype", [WIDE, HALF])
def test_a_node_with_gain_and_dropout_is_the_one_without_kernels(kernels, dtype):
    """Whole: several maps of one input, a bias, gradients that are one number, an input that is a part of another."""
    torch.manual_seed(0)
    tokens, ins, outs = 48, 40, (33, 64)
    whole = torch.randn(tokens, 2 * ins).to(dtype).requires_grad_()
    bases = [Dense(torch.randn(out, ins).to(dtype), torch.randn(out).to(dtype)) for out in outs]
    trained = [torch.randn(4, ins, requires_grad=True), torch.rand(outs[0], requires_grad=True)]
    trained += [torch.randn(out, 4, requires_grad=True) for out in outs]

    def run():
        torch.manual_seed(3)
        down, gain, *ups = trained
        x = whole[:, :ins]
        terms = [
            Branch(down, up, 0.5, gain if k == 0 else None).term(base)
            for k, (up, base) in enumerate(zip(ups, bases, strict=True))
        ]
        ys = multiply(x, terms, drop(x, 0.1))
        first = torch.autograd.grad(ys[0].sum() + ys[1].float().square().sum(), [whole, *trained])
        return [y.detach() for y in ys] + list(first)

    with multiplying((HALF,)):
        beside(kernels, ("pack", "dropped_product", "dropped_dots"), dtype, run)


@each("quant_type", ["nf4", "fp4"])
@each("size", [32, 64, 1024])
@each("double", [False, True])
def test_numbers_of_four_bits_are_those_of_bitsandbytes(kernels, quant_type, size, double):
    pytest.importorskip("bitsandbytes")
    kind = QUANTIZERS.get(quant_type)
    weight = drawn(96, 2048, seed=3).detach().to(HALF)
    weight[0], weight[1, :40], weight[2] = 0, 1e-30, 1e30 * weight[2]
    layer = kind(weight, None, kind.Config(method=quant_type, double_quant=double, block_size=size))
    plain, copied = layer.weight_as(WIDE)
    plain, seen = plain.clone(), Seen(kernels)
    assert copied and torch.equal(plain, layer.weight().float())
    with using(seen), torch.no_grad():
        ours, written = layer.weight_as(WIDE)
        assert seen.asked == ["decode_4bit"] and written and torch.equal(ours, plain)
        room = ours.data_ptr()
        assert layer.weight_as(WIDE)[0].data_ptr() == room  # nothing is made anew
        half, copied = layer.weight_as(HALF)
        assert half.dtype == HALF and not copied and seen.asked == ["decode_4bit"] * 2


def test_weights_that_are_no_whole_blocks_are_decoded_by_bitsandbytes(kernels):
    pytest.importorskip("bitsandbytes")
    kind, seen = QUANTIZERS.get("nf4"), Seen(kernels)
    layer = kind(drawn(5, 33).detach().to(HALF), None, kind.Config(method="nf4"))
    with using(seen), torch.no_grad():
        found, _ = layer.weight_as(WIDE)
    assert not seen.asked and torch.equal(found, layer.weight().float())
