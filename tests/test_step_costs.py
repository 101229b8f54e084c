"""What a step costs in figures that no machine's noise touches: calls, decodes, bytes kept, graphs.

A change that raises one of them has to say so here.
"""

from __future__ import annotations

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.build.native import native_kernels
from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.quant.none import Dense
from lrft.model.gguf import cache_root
from lrft.ops.native import Kernels, using
from lrft.ops.products import multiplying
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from tests.kept import computing, keeping
from tests.model.test_skeleton import growth, planned_bytes, recipe_of

TOKENS, IN, OUT = 32, 64, 96

# method and settings -> aten calls of a site's forward pass, of its backward pass, decodes of its weight.
SITES = {
    "lora": ({}, 7, 11, 2),
    "lora, dropout": ({"dropout": 0.05}, 19, 12, 2),
    "dora": ({}, 25, 26, 2),
    "dora, dropout": ({"dropout": 0.05}, 37, 27, 2),
    "miss": ({"rank": 16}, 9, 14, 2),
    "vera": ({"rank": 16}, 8, 14, 2),
    "gralora": ({"rank": 16}, 9, 18, 2),
    "randlora": ({"rank": 8}, 8, 14, 2),
    "nola": ({"bases": 8}, 75, 55, 2),
}
# The same two where products are taken in float32.
WIDE = {
    "lora": (9, 12),
    "lora, dropout": (22, 13),
    "dora": (20, 22),
    "dora, dropout": (37, 26),
    "miss": (12, 16),
    "vera": (11, 16),
    "gralora": (12, 21),
    "randlora": (10, 16),
    "nola": (77, 58),
}
# storage, scales in 8 bits -> calls of a decode.
DECODES = {("nf4", True): 3, ("nf4", False): 1, ("fp4", True): 3, ("fp4", False): 1}
# adapter settings -> bytes that the layers of a model keep for the backward pass, a token and layer.
KEPT = {"lora": 1440, "lora, dropout": 1584, "dora": 1888, "dora, dropout": 2608, "miss": 1416}
# The same with the kernels of the machine, which keep no probabilities (128 with documents of 16 tokens), a logarithm a
# head (16), and what was attended to (128) also where the next layer keeps it as it was dropped, or less of it.
LEANER = {"lora": 1328, "lora, dropout": 1600, "dora": 1776, "dora, dropout": 2624, "miss": 1432}

# Calls of the kernels in a pass forward and back through two layers, and of torch's beside them on each way. Norms and
# gates are computed again on the way back, but where a method keeps what they gave.
ALL = {"normalize": 8, "rotate": 8, "attend": 2, "gate": 4}
ALL |= {"normalize_back": 4, "gate_back": 2, "attend_back": 2}
THROUGH = {
    "lora": (ALL, 145, 184),
    "lora, dropout": (ALL, 249, 196),
    "dora": (ALL | {"column_dots": 14}, 299, 307),
    "dora, dropout": (
        ALL | {"column_dots": 14, "pack": 25, "dropped_product": 14, "dropped_dots": 11},
        431,
        359,
    ),
    "miss": (ALL | {"normalize": 5, "gate": 2}, 187, 241),
}


class Calls(TorchDispatchMode):
    """Counts what reaches the kernels; views cost nothing and are left out."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.counts.values())


class Counted(Dense):
    """A dense base that counts how often it is decoded."""

    decodes = 0

    def weight(self):
        self.decodes += 1
        return super().weight()


@pytest.mark.parametrize("slow", [(), (torch.bfloat16,)], ids=["half", "wide"])
@pytest.mark.parametrize("case", SITES)
def test_calls_and_decodes_of_a_site(case, slow):
    settings, forward, backward, decodes = SITES[case]
    if slow:  # numbers that are widened and rounded are calls of their own
        forward, backward = WIDE[case]
    method = case.partition(",")[0]
    cls = ADAPTERS.get(method)
    torch.manual_seed(0)
    base = Counted(torch.randn(OUT, IN, dtype=torch.bfloat16))
    config = cls.Config(method=method, **settings)
    adapter = cls.at(config, Site("a", IN, OUT), cls.shared(config, {"a": Site("a", IN, OUT)}, IN))
    adapter.start(base.weight())
    site, base.decodes = Adapted(base, adapter).train(), 0
    x = torch.randn(2, TOKENS // 2, IN, dtype=torch.bfloat16, requires_grad=True)
    with multiplying(slow):
        site(torch.ones_like(x).requires_grad_()).sum().backward()  # makes the rooms of what is widened
        site.zero_grad()
        base.decodes = 0
        with Calls() as calls:
            y = site(x)
        seed = torch.ones_like(y)
        with Calls() as back:
            y.backward(seed)
    assert (calls.total, back.total, base.decodes) == (forward, backward, decodes), (
        calls.counts,
        back.counts,
    )


@pytest.mark.parametrize(("storage", "double_quant"), DECODES)
def test_calls_of_a_decode_and_what_scales_decoded_once_would_take(storage, double_quant):
    """Scales in 8 bits take two calls more, every time; kept in float32 they would take half a bit more a weight."""
    pytest.importorskip("bitsandbytes")
    kind = QUANTIZERS.get(storage)
    torch.manual_seed(0)
    config = kind.Config(method=storage, double_quant=double_quant)
    layer = kind(torch.randn(4 * OUT, 4 * IN, dtype=torch.bfloat16), None, config)
    layer.weight()
    with Calls() as calls:
        layer.weight()
    assert calls.total == DECODES[storage, double_quant], calls.counts
    assert 4 * layer._scales().numel() == 4 * OUT * 4 * IN // 16  # half a bit a weight, in float32


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("case", KEPT)
def test_bytes_that_a_layer_keeps_of_a_token(tiny, case, kernels):
    """The difference of two lengths, so that weights and what does not grow with the tokens drop out."""
    from lrft.build.adapt import adapt
    from lrft.model.probe import batch_of
    from lrft.recipe.load import load_recipe

    method = case.partition(",")[0]
    overrides = [f"model.name={tiny()}", "train.device=cpu", "quantization=none", "model.dtype=bfloat16"]
    overrides.append(f"adapter.dropout={0.05 if 'dropout' in case else 0}")
    model = adapt(load_recipe(f"recipes/smoke/{method}.yaml", overrides).recipe).model.train()
    kept = []
    for documents in (8, 24):  # of 16 tokens each, so that attention keeps as much of every token
        with keeping() as held, computing(kernels), multiplying((torch.bfloat16,)):
            torch.manual_seed(0)
            y = model.hidden(batch_of([[[5 + k for k in range(16)] for _ in range(documents)]]))
        del y
        weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        kept.append(sum(size for place, size in held.items() if place not in weights))
    layers = model.hf.config.num_hidden_layers
    assert round((kept[1] - kept[0]) / 256 / layers) == (LEANER if kernels else KEPT)[case]


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("case", KEPT)
def test_the_plan_knows_what_a_layer_keeps_of_a_token(tiny, case, kernels):
    recipe = recipe_of(case, tiny())
    with computing(kernels), multiplying((torch.bfloat16,)):
        assert round(growth(planned_bytes, recipe) / 2) == (LEANER if kernels else KEPT)[case]


@pytest.mark.parametrize("case", KEPT)
def test_calls_of_the_kernels_and_beside_them_in_a_pass_through_the_model(tiny, case):
    from lrft.build.adapt import adapt
    from lrft.model.probe import batch_of

    found = native_kernels(cache_root().parent / "compiled")
    if not isinstance(found, Kernels):
        pytest.skip(f"no kernels on this machine: {found}")
    asked: collections.Counter[str] = collections.Counter()

    class Counting(Kernels):
        def __call__(self, name, *given):
            asked[name] += 1
            found(name, *given)

    model = adapt(recipe_of(case, tiny())).model.train()
    batch = batch_of([[[5 + k for k in range(16)] for _ in range(4)]])
    with using(Counting(())), multiplying((torch.bfloat16,)):
        for _ in range(2):  # the first makes rooms
            asked.clear()
            torch.manual_seed(0)
            with Calls() as calls:
                hidden = model.hidden(batch)
            with Calls() as back:
                hidden.sum().backward()
            model.zero_grad()
    assert (dict(asked), calls.total, back.total) == THROUGH[case], (calls.counts, back.counts)
