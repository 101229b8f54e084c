"""S'MoRE's own statements: the tree by recursion, two layers that are one, and the authors' balance."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters.smore import SMoRE
from lrft.methods.quant.none import Dense

IN, OUT = 10, 14
THREE = {"experts": [3, 4, 2], "top_k": [2, 2, 1], "ranks": [2, 3, 1]}
TWO = {"experts": [3, 4], "top_k": [2, 2], "ranks": [2, 3]}


def config(**settings):
    return SMoRE.Config(method="smore", **{"keys": 5, "narrow": 6, **settings})


def make(out=OUT, **settings):
    torch.manual_seed(0)
    adapter = SMoRE(config(**settings), Site("a", IN, out))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter, Dense(torch.randn(out, IN))


def gate(adapter, layer, seen):
    """Weights of the chosen experts of a layer by number, and all probabilities."""
    P, p, Q, q, K = (adapter.get_parameter(f"{name}{layer}") for name in "PpQqK")
    probabilities = torch.softmax(K @ (Q @ F.relu(P @ seen + p) + q), 0)
    k = adapter.config.top_k[layer]
    best = probabilities.argsort(descending=True)[:k].tolist()
    total = probabilities[best].sum() if k > 1 else 1.0
    return {i: probabilities[i] / total for i in best}, probabilities


def value(adapter, layer, x, seen, visits):
    """y of one parent by recursion; what its gate did goes to `visits`."""
    act = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda z: z}[adapter.config.activation]
    get, r, s = adapter.get_parameter, adapter.config.ranks[layer], adapter.config.experts[layer]
    weights, probabilities = gate(adapter, layer, seen)
    visits.append((layer, list(weights), probabilities))
    d = len(get(f"B{layer}")) // s
    total = torch.zeros(d)
    for i, weight in weights.items():
        inner = get(f"A{layer}")[i * r : (i + 1) * r] @ x + get(f"a{layer}")[i * r : (i + 1) * r]
        z = get(f"B{layer}")[i * d : (i + 1) * d] @ inner + get(f"b{layer}")[i * d : (i + 1) * d]
        if layer:
            children = torch.cat([seen, get(f"K{layer}")[i]])
            z = z + get(f"V{layer}") @ value(adapter, layer - 1, x, children, visits) + get(f"v{layer}")
        total = total + weight * act(z)
    return total


def by_recursion(adapter, base, x):
    visits, top = [], len(adapter.config.experts) - 1
    tops = [value(adapter, top, token, adapter.D @ token + adapter.d, visits) for token in x]
    return base(x) + torch.stack([adapter.U @ one + adapter.u for one in tops]), visits


def authors_balance(adapter, visits):
    """Of every gate: experts times the sum of shares and mean probabilities, over its parents."""
    found = 0.0
    for layer, experts in enumerate(adapter.config.experts):
        own = [(chosen, p) for at, chosen, p in visits if at == layer]
        shares = sum(F.one_hot(torch.tensor(chosen), experts).sum(0) for chosen, _ in own) / len(own)
        found = found + experts * (shares * torch.stack([p for _, p in own]).mean(0)).sum()
    return adapter.config.balance * found


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("layers", [{}, TWO, THREE], ids=["one", "two", "three"])
def test_the_map_and_its_balance_are_the_tree_by_recursion(layers, activation):
    adapter, base = make(**layers, activation=activation)
    x = torch.randn(4, IN)
    expected, visits = by_recursion(adapter, base, x)
    torch.testing.assert_close(adapter(x, base), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter.penalty(), authors_balance(adapter, visits))
    assert adapter.penalty() is None


def test_two_layers_can_be_one_with_the_products_of_all_leaves_side_by_side():
    """As the authors' start that equals one layer: B picks a place of its own, V moves what is below beside it."""
    adapter, base = make(out=18, **TWO, activation="identity")
    with torch.no_grad():
        for name in ("a0", "a1", "b0", "b1", "v1", "u"):
            adapter.get_parameter(name).zero_()
        for layer, (s, r) in enumerate([(3, 2), (4, 3)]):
            B = adapter.get_parameter(f"B{layer}").zero_().view(s, -1, r)
            for i in range(s):
                B[i, i * r : (i + 1) * r] = torch.eye(r)
        adapter.get_parameter("V1").zero_()[-6:] = torch.eye(6)
        adapter.U.copy_(torch.eye(18))
    x = torch.randn(IN)
    got, seen = adapter(x, base) - base(x), adapter.D @ x + adapter.d
    expected = torch.zeros(18)
    for i, upper in gate(adapter, 1, seen)[0].items():
        expected[3 * i : 3 * i + 3] += upper * adapter.get_parameter("A1")[3 * i : 3 * i + 3] @ x
        lower = gate(adapter, 0, torch.cat([seen, adapter.get_parameter("K1")[i]]))[0]
        for j, weight in lower.items():
            leaf = adapter.get_parameter("A0")[2 * j : 2 * j + 2] @ x
            expected[12 + 2 * j : 14 + 2 * j] += upper * weight * leaf
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_gate_that_knows_nothing_costs_its_choices_times_the_weight():
    adapter, base = make(**TWO, balance=0.5)
    for layer in (0, 1):
        torch.nn.init.zeros_(adapter.get_parameter(f"K{layer}"))
    adapter(torch.randn(2, 3, IN), base)
    assert adapter.penalty().item() == pytest.approx(0.5 * (2 + 2))


def test_padding_is_left_out_of_the_balance():
    adapter, base = make(**TWO)
    x, none = torch.randn(1, 6, IN), torch.zeros(0, dtype=torch.long)
    ids = torch.zeros(1, 6, dtype=torch.long)
    with computing(Batch(ids, ids, ((0, 0, 4),), none, none)):
        adapter(x, base)
        padded = adapter.penalty()
    adapter(x[:, :4], base)
    torch.testing.assert_close(padded, adapter.penalty())


def test_only_the_experts_of_a_tree_get_a_gradient():
    adapter, base = make(**TWO)
    x = torch.randn(IN)
    adapter(x, base).sum().backward()
    seen, grads = adapter.D @ x + adapter.d, {}
    for layer, (s, r) in enumerate([(3, 2), (4, 3)]):
        grad = adapter.get_parameter(f"A{layer}").grad.view(s, r, IN)
        grads[layer] = set((grad.abs().sum((1, 2)) > 0).nonzero().flatten().tolist())
    upper = gate(adapter, 1, seen)[0]
    assert grads[1] == set(upper)
    keys = adapter.get_parameter("K1")
    assert grads[0] == {j for i in upper for j in gate(adapter, 0, torch.cat([seen, keys[i]]))[0]}


def test_bfloat16_activations_are_routed_as_in_float32():
    adapter, base = make(**TWO)
    x, low = torch.randn(50, IN).bfloat16(), Dense(base.weight().bfloat16())
    got = adapter(x, low)
    assert got.dtype == torch.bfloat16
    expected = adapter(x.float(), Dense(low.weight().float()))
    torch.testing.assert_close(got.float(), expected, atol=0.15, rtol=3e-2)


def test_layers_are_as_wide_as_all_experts_up_to_them():
    adapter, _ = make(**THREE)
    assert [len(adapter.get_parameter(f"B{layer}")) // s for layer, s in enumerate([3, 4, 2])] == [6, 18, 20]
    assert adapter.get_parameter("V2").shape == (20, 18) and adapter.U.shape == (OUT, 20)
    assert [adapter.get_parameter(f"P{layer}").shape[1] for layer in range(3)] == [16, 11, 6]


def test_counts_of_llama_3_8b_are_the_authors_formula():
    """One layer as in the authors' recipe: experts, final projection, gate, all with biases."""
    one = SMoRE.Config(method="smore")
    for width, out in ((4096, 14336), (14336, 4096)):
        experts = 4 * (16 * width + 16 + 64 * 16 + 64) + out * 64 + out
        gates = 32 * width + 32 + 2 * (32 * 32 + 32) + 4 * 32
        assert SMoRE.count(one, Site("s", width, out)) == experts + gates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": [2, 1]}, "top_k has 2 entries, and experts 1; write one a layer"),
        ({"ranks": [2, 1]}, "ranks has 2 entries, and experts 1"),
        ({"top_k": [5]}, "top_k is 5 in a layer of 4 experts; write at most 4"),
        ({"experts": [2] * 5, "top_k": [1] * 5, "ranks": [1] * 5}, "at most 4 items"),
    ],
)
def test_layers_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)
