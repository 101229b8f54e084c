"""Norms, gates and rotations in one node: the model's own values to the bit, its gradients, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.model.fused import fuse
from lrft.model.load import load_model
from lrft.ops.compiled import FAILURES, compiling
from lrft.ops.elementwise import gated, rms_norm, rotated
from lrft.recipe.sections import ModelSection

FAMILIES = {"llama": (5, 2, 2), "qwen3": (9, 2, 2), "gemma2": (9, 0, 2), "gpt2": (0, 0, 0)}


def hidden(model, positions):
    embedding = model.hf.get_input_embeddings()
    given = embedding(positions).detach().requires_grad_()
    output = model.body(inputs_embeds=given, use_cache=False).last_hidden_state
    # Not the sum of squares, which a norm makes nearly constant.
    seed = torch.linspace(-1, 1, output.numel()).sin_().view_as(output)
    return output, torch.autograd.grad((output * seed.to(output.dtype)).sum(), given)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_keeps_its_values_to_the_bit_and_its_gradients(tiny, family, dtype):
    model = load_model(ModelSection(name=str(tiny(family)), dtype=dtype, attention="eager"))
    ids = torch.arange(3, 17).view(2, 7)
    before, slow = hidden(model, ids)
    assert tuple(fuse(model.hf).values()) == FAMILIES[family]
    after, fast = hidden(model, ids)
    assert torch.equal(before, after)
    distance = (fast - slow).float().norm() / slow.float().norm()
    assert distance < (1e-5 if dtype == "float32" else 1e-2)


def test_a_copy_computes_with_its_own_weights(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32", attention="eager"))
    fuse(model.hf)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.hf.parameters():
            parameter.zero_()
    assert not hidden(model, torch.ones(1, 3, dtype=torch.int64))[0].eq(0).all()
    assert hidden(other, torch.ones(1, 3, dtype=torch.int64))[0].eq(0).all()


def test_fusing_twice_changes_nothing(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32", attention="eager"))
    fuse(model.hf)
    before = hidden(model, torch.ones(1, 3, dtype=torch.int64))
    fuse(model.hf)
    after = hidden(model, torch.ones(1, 3, dtype=torch.int64))
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_a_norm_that_trains_gets_its_gradient(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32", attention="eager"))
    fuse(model.hf)
    norm = next(p for name, p in model.hf.named_parameters() if name.endswith("norm.weight"))
    norm.requires_grad_()
    output = model.body(input_ids=torch.ones(1, 3, dtype=torch.int64), use_cache=False).last_hidden_state
    assert torch.autograd.grad(output.square().sum(), norm)[0].abs().min() > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "cohere"])
def test_norms_that_trained_as_they_were_found_are_themselves_once_they_are_frozen(tiny, family):
    """Their trial, where they train, had compared them with themselves."""
    model = load_model(ModelSection(name=str(tiny(family)), dtype="float32", attention="eager"))
    norms = [p for name, p in model.hf.named_parameters() if name.endswith("norm.weight")]
    with torch.no_grad():
        for norm in norms:
            norm.copy_(torch.rand(norm.shape))
    ids = torch.arange(3, 17).view(2, 7)
    before, slow = hidden(model, ids)
    for norm in norms:
        norm.requires_grad_()
    assert bool(fuse(model.hf)["norms"]) == (family != "cohere")  # whose norms take the mean away
    for norm in norms:
        norm.requires_grad_(False)
    after, fast = hidden(model, ids)
    assert torch.equal(before, after)
    assert (fast - slow).norm() < 1e-5 * slow.norm()


def test_a_norm_that_is_given_more_than_states_computes_with_it():
    """As the gated norms of Mamba's families: without a gate they are plain ones."""
    model = Model(nn.Sequential(GatedNorm()))
    x, gate = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    norm = model.block[0]
    plain, gated_once = norm(x), norm(x, gate)
    assert fuse(model)["norms"] == 1
    assert torch.equal(norm(x), plain)
    assert torch.equal(norm(x, gate), gated_once) and torch.equal(norm(x, gate=gate), gated_once)
    assert not torch.equal(plain, gated_once)


class Model(nn.Module):
    """A model of one block, as far as it is looked at."""

    def __init__(self, block):
        super().__init__()
        self.block, self.embedding = block, nn.Embedding(4, 8)

    def get_input_embeddings(self):
        return self.embedding


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16), nn.Linear(8, 16)
        self.down_proj, self.act_fn = nn.Linear(16, 8), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Dropping(Gate):
    rate = 0.5

    def forward(self, x):
        h = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(F.dropout(h, self.rate, self.training))


class Swapped(Gate):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class Norm(nn.Module):
    eps = 1e-2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8), requires_grad=False)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class GatedNorm(Norm):
    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * F.silu(gate))


class Scaling(Gate):
    def forward(self, x, scale=1.0):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * scale


class Outside(Norm):
    def forward(self, x):
        return self.weight * (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps))


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (Gate(), {"gates": 1}),
        (Dropping(), {}),
        (Swapped(), {}),
        (Scaling(), {}),
        (nn.Sequential(Norm()), {"norms": 1}),
        (nn.Sequential(Outside()), {}),
        (nn.LayerNorm(8, bias=False), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_only_what_computes_just_that_is_taken(block, found):
    counts = {kind: count for kind, count in fuse(Model(block)).items() if count}
    assert counts == found


def test_the_input_of_what_follows_a_gate_is_not_kept_a_second_time(tiny):
    """Gate and up are kept for the gate itself; the product of both is made of them again."""
    from lrft.build.adapt import adapt
    from lrft.recipe.load import load_recipe

    overrides = [f"model.name={tiny()}", "train.device=cpu", "adapter.dropout=0.1"]
    recipe = load_recipe("recipes/smoke/lora.yaml", overrides).recipe
    model = adapt(recipe).model
    model.train()
    site = model.hf.get_submodule("model.layers.0.mlp")
    x = torch.randn(5, site.gate_proj.base.in_features).to(model.dtype).requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        site(x)
    wide = [t for t in kept.values() if t.shape[-1:] == (site.down_proj.base.in_features,) and len(t) == 5]
    assert len(wide) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_product_of_a_gate_has_the_gradients_of_the_formula(dropout):
    from lrft.methods.quant.none import Dense
    from lrft.ops.low_rank import Branch, branch_linear

    torch.manual_seed(0)
    base, factors = Dense(torch.randn(6, 16)), (torch.randn(3, 16), torch.randn(6, 3))
    gate, up = torch.randn(4, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)
    down, out = (factor.requires_grad_() for factor in factors)
    results = []
    for h in (gated(gate, up), F.silu(gate) * up):
        torch.manual_seed(1)
        y = branch_linear(h, base, Branch(down, out, 0.5, dropout=dropout), training=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), [gate, up, down, out])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


PARTS = {
    "gate": lambda x, weight, turned, cos, sin: gated(x, x * 2),
    "norm": lambda x, weight, turned, cos, sin: rms_norm(x, weight, 1e-5, False),
    "rotation": lambda x, weight, turned, cos, sin: rotated(turned, cos, sin).pow(2),
}


@pytest.mark.parametrize(
    "part", [name if name == "gate" else pytest.param(name, marks=pytest.mark.slow) for name in PARTS]
)
def test_a_compiled_function_gives_what_the_eager_one_gives(part):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 8, requires_grad=True), torch.rand(8)
    turned = torch.randn(2, 4, 5, 8, requires_grad=True)
    cos, sin = torch.rand(2, 1, 5, 8), torch.rand(2, 1, 5, 8)

    def run():
        y = PARTS[part](x, weight, turned, cos, sin).sum()
        return [y, *torch.autograd.grad(y, [turned if part == "rotation" else x])]

    eager = run()
    with compiling():
        compiled = run()
    if FAILURES:
        pytest.skip(f"nothing can be compiled here: {FAILURES[0]}")
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_everything_runs_eagerly_and_the_reason_is_kept(monkeypatch):
    from lrft.ops import compiled

    def fail(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(compiled, "FAILURES", [])
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    double = compiled.fusible(lambda x: 2 * x)
    with compiled.compiling():
        assert double(torch.ones(1)) == 2 and double(torch.ones(1)) == 2
    assert compiled.FAILURES == ["no C++ compiler"]


def test_packed_documents_stay_apart(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32"))
    model.set_attention("segmented")
    ids = torch.arange(3, 13).view(1, 10)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    documents = ((0, 0, 4), (0, 4, 10))
    batch = Batch(ids, positions, documents, torch.tensor([0]), torch.tensor([1]))
    before = model.hidden(batch)
    fuse(model.hf)
    assert torch.equal(before, model.hidden(batch))


@pytest.mark.parametrize(("family", "said"), [("llama", None), ("gpt2", "norms and gates and rotations")])
def test_a_training_is_told_what_is_not_computed_in_one_node(tiny, family, said):
    from lrft.build.adapt import adapt
    from lrft.recipe.load import load_recipe

    given = [
        f"model.name={tiny(family)}",
        "train.device=cpu",
        "quantization=none",
        "adapter.targets=all-linear",
    ]
    recipe = load_recipe("recipes/smoke/lora.yaml", given).recipe
    told = [note for note in adapt(recipe).notes if note.startswith("model.name")]
    assert told == (
        [] if said is None else [f"model.name: {said} run as the model's own code has them, none in one node"]
    )
    assert not [note for note in adapt(recipe, trains=False).notes if note.startswith("model.name")]
