"""Attention within documents: equal to dense attention on every side of the block edges, and lean on long ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.model.load import load_model
from lrft.model.probe import batch_of
from lrft.ops.attention import attend
from lrft.ops.attention_blocks import BLOCK, LONG, SMALL, Rule, blocks_of, met_pairs, widest
from lrft.ops.products import multiplying
from lrft.recipe.sections import ModelSection

HEADS = [(4, 4, 16, 16), (6, 2, 16, 8), (4, 1, 8, 24)]  # query heads, key/value heads, D, D_v
EDGES = [1, BLOCK - 1, LONG - 1, LONG, LONG + 1, 5 * BLOCK - 1, 5 * BLOCK, 5 * BLOCK + 1]
WINDOWS = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 300, LONG + 1, 5000]
NAMES = ("out", "query", "key", "value", "sinks")


def inputs(lengths, heads, dtype=torch.float32, sinks=False, pad=3):
    """query, key, value (1, heads, L, D) as a model lays them out, sinks or None, and the documents."""
    H, K, D, D_v = heads
    make = torch.Generator().manual_seed(sum(lengths))
    L = sum(lengths) + pad
    q, k, v = (
        torch.randn(1, L, h, d, generator=make).to(dtype).transpose(1, 2).requires_grad_()
        for h, d in ((H, D), (K, D), (K, D_v))
    )
    documents, at = [], 0
    for n in lengths:
        documents.append((0, at, at + n))
        at += n
    sink = torch.randn(H, generator=make).to(dtype).requires_grad_() if sinks else None
    return q, k, v, sink, tuple(documents)


def dense(q, k, v, documents, rule):
    """Every pair of a row at once: torch's own attention where it can, else the formula with all of the scores."""
    L, G = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
    seen = torch.zeros(L, L, dtype=torch.bool)
    for _, start, end in documents:
        there = torch.arange(end - start)
        ahead = there[:, None] - there[None]
        seen[start:end, start:end] = (ahead >= 0) & (ahead < (rule.window or L))
    real = torch.zeros(L, 1)
    for _, start, end in documents:
        real[start:end] = 1
    seen = seen | torch.eye(L, dtype=torch.bool)  # padding sees itself, and is taken out again
    if rule.softcap is None and rule.sinks is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=rule.scale)
    else:
        scores = q @ k.mT * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        scores = scores.masked_fill(~seen, -math.inf)
        if rule.sinks is not None:
            scores = torch.cat([scores, rule.sinks.view(1, -1, 1, 1).expand(1, -1, L, 1)], -1)
        out = torch.softmax(scores, -1)[..., :L] @ v
    return (out * real.to(out.dtype)).transpose(1, 2)


def run(function, lengths, heads, rule, dtype=torch.float32, sinks=False):
    """The output and the gradients that it gives to everything it is made of."""
    q, k, v, sink, documents = inputs(lengths, heads, dtype, sinks)
    out = function(q, k, v, documents, Rule(rule.scale, rule.window, rule.softcap, rule.dropout, sink))
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    grads = [x.grad for x in (q, k, v, sink) if x is not None]
    return [out.detach(), *grads]


def assert_equal(lengths, heads, rule, sinks=False):
    ours, theirs = (run(f, lengths, heads, rule, sinks=sinks) for f in (attend, dense))
    for name, a, b in zip(NAMES, ours, theirs, strict=False):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("n", EDGES)
def test_documents_around_the_edges_equal_dense_attention(n, heads):
    assert_equal([n], heads, Rule(0.3))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sinks", [False, True])
def test_windows_equal_dense_attention(window, sinks):
    assert_equal([LONG + 1, 5 * BLOCK], HEADS[1], Rule(0.3, window), sinks)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [0, 100])
def test_short_and_long_documents_share_a_row(softcap, sinks, window):
    assert_equal([40, LONG + 70, 130, LONG, 6 * BLOCK + 1], HEADS[1], Rule(0.3, window, softcap), sinks)


def test_a_long_document_gives_the_bits_of_itself_alone():
    alone = run(attend, [LONG + 9], HEADS[1], Rule(0.3))
    q, k, v, _, _ = inputs([LONG + 9], HEADS[1])
    joined = [torch.cat([x.flip(2), x], 2).detach().requires_grad_() for x in (q, k, v)]
    L = q.shape[2]
    out = attend(*joined, ((0, 0, L), (0, L, 2 * L - 3)), Rule(0.3))
    assert torch.equal(out[:, L : 2 * L - 3], alone[0][:, : L - 3])


def test_blocks_in_bfloat16_are_as_near_to_exact_numbers_as_kept_probabilities(monkeypatch):
    lengths, rule = [LONG + 300], Rule(0.25)
    exact = run(dense, lengths, HEADS[1], rule, torch.float64)
    inexact = run(attend, lengths, HEADS[1], rule, torch.bfloat16)
    monkeypatch.setattr("lrft.ops.attention.LONG", 10_000)
    kept = run(attend, lengths, HEADS[1], rule, torch.bfloat16)
    rounded = inputs(lengths, HEADS[1], torch.bfloat16)
    assert not torch.equal(rounded[0].double(), inputs(lengths, HEADS[1], torch.float64)[0])
    for name, blocked, whole, true in zip(NAMES, inexact, kept, exact, strict=False):
        far = [float((x.double() - true).norm() / true.norm()) for x in (blocked, whole)]
        assert far[0] < 1.1 * far[1] < 0.02, (name, far)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_dropout_in_blocks_drops_the_same_in_the_backward_pass(softcap):
    rule, lengths = Rule(0.3, 0, softcap, 0.2), [LONG + 40, LONG + 1]
    q, k, v, _, documents = inputs(lengths, HEADS[1], torch.float64)
    make = torch.Generator().manual_seed(4)
    along = [torch.randn(x.shape, generator=make, dtype=torch.float64) for x in (q, k, v)]

    def value(step):
        torch.manual_seed(9)
        return (
            attend(*(x + step * d for x, d in zip((q, k, v), along, strict=True)), documents, rule)
            .square()
            .sum()
        )

    value(0.0).backward()
    slope = sum(float((x.grad * d).sum()) for x, d in zip((q, k, v), along, strict=True))
    with torch.no_grad():
        assert slope == pytest.approx(float(value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-5)


def test_dropout_in_blocks_drops_the_share_it_is_told():
    q, k, _, _, documents = inputs([3 * LONG], (8, 8, 16, 1))
    ones = torch.ones(1, 8, q.shape[2], 1)
    torch.manual_seed(0)
    with torch.no_grad():
        sums, again = (
            attend(q * 0, k, ones, documents, Rule(1.0, 0, None, 0.25))[0, LONG:-3] for _ in range(2)
        )
    assert float(sums.mean()) == pytest.approx(1, abs=0.005)
    # Row t averages t draws that are 0 or 4/3: their variance is (1/3) / t.
    t = torch.arange(LONG + 1, 3 * LONG + 1)
    assert float(((sums[..., 0] - 1).square() * t[:, None]).mean()) == pytest.approx(1 / 3, rel=0.1)
    assert not torch.equal(sums, again)


def saved_bytes(n, rule, heads=(6, 2, 16, 16)):
    q, k, v, _, documents = inputs([n], heads, torch.bfloat16, pad=0)
    held = {}

    def keep(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attend(q, k, v, documents, rule)
    assert out.grad_fn is not None  # what it saved is still there to be counted
    return sum(held.values())


@pytest.mark.parametrize("rule", [Rule(0.3), Rule(0.3, 200), Rule(0.3, 0, 5.0), Rule(0.3, 0, None, 0.1)])
def test_of_a_long_document_nothing_is_kept_but_queries_keys_and_values(rule):
    for n in (LONG + 1, 2 * LONG, 4 * LONG):
        assert saved_bytes(n, rule) == 2 * n * (6 + 2 + 2) * 16


def test_of_a_short_document_the_probabilities_are_kept():
    """Of those that the blocks hold: nothing above the diagonal but near it."""
    pairs = SMALL * sum(range(SMALL, LONG + 1, SMALL))
    assert pairs == met_pairs(LONG) == 0.5625 * LONG**2
    assert met_pairs(2 * SMALL) == 4 * SMALL**2
    assert saved_bytes(LONG, Rule(0.3)) == 2 * LONG * (6 + 2 + 2) * 16 + 2 * 6 * pairs


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else [made]:
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("item", [2, 4])  # bytes of a number in products
@pytest.mark.parametrize("window", [0, 512])
def test_no_tensor_of_an_8k_document_is_larger_than_a_block_of_scores(window, item):
    H, K, D, n = 9, 3, 64, 8192  # SmolLM2-135M
    q, k, v, _, documents = inputs([n], (H, K, D, D), torch.bfloat16, pad=0)
    with Largest() as largest, multiplying((torch.bfloat16,) if item == 4 else ()):
        attend(q, k, v, documents, Rule(D**-0.5, window)).sum().backward()
    block = item * H * BLOCK * (n if window == 0 else window + BLOCK - 1)
    whole = 4 * K * n * D  # keys or values in float32; queries in bfloat16 are 2 H n D
    assert largest.bytes == max(block, whole, 2 * H * n * D)
    assert largest.bytes < item * 10 * 2**20 < item * H * n**2 // 50


@pytest.mark.parametrize("window", [0, 1, 100, 128, 5000])
@pytest.mark.parametrize("n", [1, 2 * SMALL, 2 * SMALL + 1, 300, LONG, LONG + 1, 1000])
def test_blocks_meet_every_visible_pair_and_few_others(n, window):
    met = torch.zeros(n, n, dtype=torch.int)
    for block in blocks_of(n, window):
        met[block.start : block.end, block.first : block.end] += 1
        assert block.end - block.first <= widest(n, window)
    there = torch.arange(n)
    ahead = there[:, None] - there[None]
    seen = (ahead >= 0) & (ahead < (window or n))
    assert bool((met[seen] == 1).all())
    assert int(met.max()) == 1
    assert int(met.sum() - seen.sum()) <= n * BLOCK * (2 if window else 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_a_long_document_in_a_model_equals_its_eager_attention(tiny, family):
    ids = torch.randint(5, 500, (LONG + 100,), generator=torch.Generator().manual_seed(2)).tolist()
    batch, found = batch_of([[ids], [ids[:50]]]), {}
    for backend in ("segmented", "eager"):
        model = load_model(ModelSection(name=str(tiny(family)), dtype="float32", attention=backend))
        if family == "mistral":
            model.hf.config.sliding_window = 200
        model.hf.requires_grad_(True)
        hidden = model.hidden(batch)
        real = torch.cat([hidden[row, start:end] for row, start, end in batch.documents])
        # Not a sum of squares: what comes out of a norm has almost no gradient of its length.
        real.backward(torch.randn(real.shape, generator=torch.Generator().manual_seed(3)))
        found[backend] = {
            "hidden": real.detach(),
            **{n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None},
        }
    assert found["segmented"].keys() == found["eager"].keys()
    for name, wanted in found["eager"].items():
        atol = 1e-3 * float(wanted.abs().max()) + 1e-9
        torch.testing.assert_close(
            found["segmented"][name], wanted, atol=atol, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
