"""SparseLoRA's own statements: against masks on the dense model, and where it is LoRA to the last bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.methods.adapters._contextual import (
    Contextual,
    gated_norms,
    in_all_groups,
    kept_of,
    largest,
    projected_norms,
)
from lrft.ops.channel_matmul import Channels, channel_linear
from lrft.ops.linalg import truncated_svd
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import RecipeError

LENGTH, PROMPT = 9, 5
LATE = 0.5  # of the run is done


@pytest.fixture(scope="module")
def made(tiny):
    """`made(settings, more recipe)` -> a model in training mode, its factors away from their start."""
    kept = {}

    def make(adapter="method: sparselora", *more, family="llama", fresh=False):
        key = (adapter, *more, family)
        if key not in kept or fresh:
            settings = f"adapter={{{adapter}, rank: 4, alpha: 8}}"
            given = [f"model.name={tiny(family)}", "train.device=cpu", "model.dtype=float32", settings, *more]
            model = adapt(load_recipe("recipes/smoke/sparselora.yaml", given).recipe).model
            torch.manual_seed(0)
            for _, site in adapted(model.hf):
                for parameter in site.adapter.parameters():
                    parameter.data = 0.1 * torch.randn_like(parameter)
            kept[key] = model
        return kept[key].train()

    return make


HALF = (
    "method: sparselora, feed_forward: 0.5, attention: 0.5, dense_first: 0, dense_last: 0, dense_steps: 0.3"
)
NOTHING = "method: sparselora, feed_forward: 0, attention: 0, dense_first: 0, dense_last: 0"
PLAIN = "method: lora, targets: [q_proj, k_proj, v_proj, o_proj]"


def batch():
    """Two documents, of which the last tokens are learnt; the second is shorter and padded."""
    ids = torch.randint(5, 90, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    ends = (LENGTH, LENGTH - 2)
    supervised = torch.cat(
        [torch.arange(row * LENGTH + PROMPT - 1, row * LENGTH + end - 1) for row, end in enumerate(ends)]
    )
    documents = tuple((row, 0, end) for row, end in enumerate(ends))
    return Batch(
        ids,
        torch.arange(LENGTH).expand(2, -1).contiguous(),
        documents,
        supervised,
        torch.ones(len(supervised)),
    )


def passed(model, done=LATE):
    """Hidden states of the real tokens, and the gradient of everything that trains."""
    whole = batch()
    for parameter in model.parameters():
        parameter.grad = None
    with computing(whole, 0, done=done):
        hidden = model.hidden(whole)
        hidden = torch.cat([hidden[row, start:end] for row, start, end in whole.documents])
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def same(one, other, exactly=False):
    (hidden, gradients), (hidden_, gradients_) = one, other
    assert gradients.keys() == gradients_.keys() and gradients
    tight = {"atol": 0, "rtol": 0} if exactly else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(hidden, hidden_, **tight)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_[name], **tight)


def masked(model, shared):
    """Hooks that put the chosen channels' masks on the dense layers' products, given the sets."""
    handles, learnt = [], torch.zeros(2 * LENGTH, dtype=torch.bool)
    learnt[batch().supervised + 1] = True
    for path, channels in shared.chosen.items():
        if channels is None:
            continue
        layer = model.hf.get_submodule(path)

        def hook(module, inputs, output, channels=channels):
            base = getattr(module, "base", module)
            width = base.in_features if channels.of_inputs else base.out_features
            mask = learnt.view(2, LENGTH, 1) | torch.zeros(width, dtype=torch.bool).index_fill(
                0, channels.index, True
            )
            (x,) = inputs
            seen = F.linear(x * mask if channels.of_inputs else x, base.weight(), base.bias)
            seen = seen if channels.of_inputs else seen * mask
            return seen + (module.adapter.update(x) if base is not module else 0)

        handles.append(layer.register_forward_hook(hook))
    return handles


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_a_step_is_the_dense_model_with_masks_on_its_channels(made, storage):
    sparse, plain = made(HALF, f"quantization={storage}"), made(PLAIN, f"quantization={storage}")
    found = passed(sparse)
    chosen = {path: c for path, c in sparse.shared.chosen.items() if c is not None}
    assert len(chosen) == 2 * 7
    handles = masked(plain, sparse.shared)
    expected = passed(plain)
    for handle in handles:
        handle.remove()
    same(found, expected)
    assert (found[0] - passed(plain)[0]).abs().max() > 1e-3


def test_it_is_lora_in_evaluation_in_the_first_steps_and_outside_of_a_step(made):
    sparse, plain = made(HALF), made(PLAIN)
    assert torch.equal(sparse.eval()(batch()), plain.eval()(batch()))
    # Layers of one input are one product in LoRA, whose sums some processors take in another order.
    torch.testing.assert_close(sparse.train()(batch()), plain.train()(batch()), atol=1e-6, rtol=1e-5)
    same(passed(sparse, 0.29), passed(plain, 0.29))
    with computing(batch(), 0, done=LATE):
        assert torch.equal(sparse.eval()(batch()), plain.eval()(batch()))
        with torch.no_grad():  # a reference
            assert torch.equal(sparse.train()(batch()), plain.train()(batch()))


def test_without_sparsity_it_is_lora(made):
    nothing, plain = made(NOTHING), made(PLAIN)
    same(passed(nothing), passed(plain))
    assert not any(nothing.shared.chosen.values()) and not nothing.shared.layers
    site, other = (next(adapted(model.hf))[1] for model in (nothing, plain))
    x = torch.randn(3, site.adapter.site.in_features)
    assert torch.equal(site.adapter(x, site.base), other.adapter(x, other.base))


def test_recomputed_activations_choose_the_same_channels(made):
    same(passed(made(HALF)), passed(made(HALF, "model.activation_checkpointing=true")))


def test_tokens_that_are_learnt_see_every_channel_of_a_block_and_the_last_of_a_prompt_does_not(made):
    sparse, plain = made(HALF), made(PLAIN)
    paths = "model.layers.0.mlp"
    x = torch.randn(2, LENGTH, sparse.hf.get_submodule(f"{paths}.gate_proj").in_features)
    with computing(batch(), 0, done=LATE):
        given, dense = (model.hf.get_submodule(paths)(x).flatten(0, 1) for model in (sparse, plain))
    learnt = batch().supervised + 1  # what has a label in the authors' code
    torch.testing.assert_close(given[learnt], dense[learnt])
    others = list(range(PROMPT))
    assert (given[others] - dense[others]).abs().amax(1).min() > 1e-5


def test_layers_at_both_ends_stay_dense_and_frozen_layers_without_a_lora_are_sparse(made):
    model = made(HALF.replace("dense_last: 0", "dense_last: 1"))
    passed(model)
    paths = {path for path, channels in model.shared.chosen.items() if channels is not None}
    assert {path.split(".")[2] for path in paths} == {"0"} and len(paths) == 7
    sites = {name for name, _ in adapted(model.hf)}
    assert {path for path in paths if path not in sites} == {
        f"model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")
    }


def test_attentions_and_blocks_are_sparse_in_layers_of_their_own(made):
    model = made(f"{HALF}, attention_layers: [1]")
    passed(model)
    paths = {path for path, channels in model.shared.chosen.items() if channels is not None}
    layers = {part: {p.split(".")[2] for p in paths if part in p} for part in ("mlp", "self_attn")}
    assert layers == {"mlp": {"0", "1"}, "self_attn": {"1"}}


@pytest.mark.parametrize("of_inputs", [False, True])
def test_the_product_is_that_of_a_masked_one_and_keeps_no_activation(of_inputs):
    torch.manual_seed(0)
    base = QUANTIZERS.get("none")(torch.randn(12, 8), torch.randn(12))
    index, sparse, dense = torch.tensor([1, 4, 5]), torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    x, kept = torch.randn(2, 3, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = channel_linear(x, base, Channels(index, of_inputs, sparse, dense))
    assert all(not t.is_floating_point() for t in kept)
    mask = (
        torch.zeros(6, 8 if of_inputs else 12).index_fill(1, index, 1).index_fill(0, dense, 1).view(2, 3, -1)
    )
    z = x.detach().clone().requires_grad_()
    expected = F.linear(z * mask, base.weight(), base.bias) if of_inputs else base(z) * mask
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    (y * seed).sum().backward(), (expected * seed).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_scores_are_those_of_the_products_where_the_predictor_has_every_direction():
    torch.manual_seed(0)
    x, weights = torch.randn(40, 8), [torch.randn(24, 8) for _ in range(2)]

    def predictor(weight, rank):
        U, S, Vh = truncated_svd(weight, rank)
        return S[:, None] * Vh, U

    whole = [predictor(weight, 8) for weight in weights]
    gate, up = (x @ weight.mT for weight in weights)
    oracle = (F.silu(gate) * up).norm(dim=0)
    torch.testing.assert_close(gated_norms(x, *whole, F.silu), oracle, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projected_norms(x, *whole[0]), gate.norm(dim=0), atol=1e-4, rtol=1e-4)
    overlaps = []
    for rank in (1, 4, 8):
        scores = gated_norms(x, *(predictor(weight, rank) for weight in weights), F.silu)
        overlaps.append(len(set(largest(scores, 0.5).tolist()) & set(largest(oracle, 0.5).tolist())))
    assert overlaps == sorted(overlaps) and overlaps[-1] == 12


def test_as_many_channels_are_kept_as_the_share_says():
    """Llama-3-8B at the authors' sparsities: the block's 14,336 channels and the keys' 1,024."""
    assert kept_of(14_336, 0.99) == 143 and kept_of(1024, 0.75) == 256 and kept_of(100, 0.9) == 9
    assert largest(torch.tensor([1.0, 5, 3, 5, 0]), 0.4).tolist() == [1, 2, 3]


def test_queries_follow_the_keys_that_they_meet():
    """Two heads of keys of width 4, three heads of queries to each."""
    found = in_all_groups(torch.tensor([1, 6]), 3, 4)
    assert found.tolist() == [1, 5, 9, 14, 18, 22]


@pytest.mark.parametrize(
    ("adapter", "family", "message"),
    [
        (
            HALF.replace("feed_forward: 0.5", "feed_forward: 0.999"),
            "llama",
            r"adapter\.feed_forward: leaves none of .* write less",
        ),
        (
            "method: sparselora, dense_first: 3",
            "llama",
            r"adapter\.dense_first: and dense_last leave none of 2 layers",
        ),
        (
            f"{HALF}, feed_forward_layers: [0, 2]",
            "llama",
            r"adapter\.feed_forward_layers: names layer 2, and the model has 0 to 1; write those",
        ),
        ("method: sparselora, targets: all-linear", "gpt2", r"adapter\.method: knows layers .* use lora"),
        (
            HALF,
            "glm4_moe",
            r"adapter\.method: knows layers .* use lora",
        ),  # its shared expert stands beside others
        (HALF, "qwen2_moe", r"adapter\.method: knows layers .* use lora"),
    ],
)
def test_what_has_no_sparse_form_is_refused(made, adapter, family, message):
    with pytest.raises(RecipeError, match=message):
        made(adapter, family=family)


def test_a_factor_within_the_gate_has_its_say_in_which_channels_are_largest(monkeypatch):
    """Falcon-H1 multiplies what goes into the activation."""
    block = nn.Module()
    block.act_fn, block.gate_multiplier = nn.SiLU(), 8.0
    torch.manual_seed(0)
    x, gate, up = torch.randn(6, 4), torch.randn(256, 4), torch.randn(256, 4)
    context = Contextual(SimpleNamespace(feed_forward=0.5))
    weights = {"b.gate_proj": gate, "b.up_proj": up}
    monkeypatch.setattr(context, "_predictor", lambda path: (torch.eye(4), weights[path]))
    monkeypatch.setattr(context, "_divided", lambda x: (torch.empty(0), torch.empty(0)))
    found = context._of_block("b", block, x)["up_proj"].index
    norms = (F.silu(8 * (x @ gate.mT)) * (x @ up.mT)).norm(dim=0)
    assert found.tolist() == norms.topk(128).indices.sort().values.tolist()
    plain = (F.silu(x @ gate.mT) * (x @ up.mT)).norm(dim=0)
    assert found.tolist() != plain.topk(128).indices.sort().values.tolist()
