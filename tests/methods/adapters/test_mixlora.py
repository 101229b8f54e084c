"""MixLoRA's own statements, the authors' block and balance loss among them."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted, adapted
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.mixlora import MixLoRA
from lrft.model.attach import attach
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.sites import sites_of
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import INITS, QUANTIZERS
from lrft.registry.errors import NotMergeable, RecipeError
from tests.model.test_families import DOCUMENTS, batch_of

HIDDEN, INNER = 16, 40
SITE = Site("model.layers.0.mlp", HIDDEN, HIDDEN, kind="mlp")


class Block(nn.Module):
    def __init__(self, storage="none") -> None:
        super().__init__()
        settings = QUANTIZERS.declared(storage).config(method=storage)

        def store(out, width):
            return QUANTIZERS.get(storage)(torch.randn(out, width) / width**0.5, None, settings)

        self.gate_proj, self.up_proj = store(INNER, HIDDEN), store(INNER, HIDDEN)
        self.down_proj, self.act_fn = store(HIDDEN, INNER), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def config(**settings):
    return MixLoRA.Config(method="mixlora", **{"dropout": 0.0, "rank": 4, "alpha": 8.0, **settings})


def make(storage="none", trained=True, **settings):
    torch.manual_seed(0)
    block, adapter = Block(storage), MixLoRA.at(config(**settings), SITE)
    adapter.fit(block)
    if trained:
        for name in ("B_gate", "B_up", "B_down", "router"):
            nn.init.normal_(adapter.get_parameter(name), std=0.3)
    return adapter, block


def authors(adapter, block, x):
    """The authors' sparse block, expert by expert with the whole output weighted: output and router logits."""
    r, k, experts = adapter.config.rank, adapter.config.top_k, adapter.config.experts
    flat = x.view(-1, HIDDEN)
    logits = F.linear(flat, adapter.router)
    weights, selected = torch.topk(torch.softmax(logits, 1), k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    mask, final = F.one_hot(selected, experts).permute(2, 1, 0), torch.zeros_like(flat)

    def lora(e, name, residual, data):
        A = adapter.get_parameter(f"A_{name}")[e * r : (e + 1) * r]
        B = adapter.get_parameter(f"B_{name}")[:, e * r : (e + 1) * r]
        return residual + data @ A.mT @ B.mT * adapter.scaling

    for e in range(experts):
        idx, top_x = torch.where(mask[e])
        data = flat[top_x]
        gate, up = lora(e, "gate", block.gate_proj(data), data), lora(e, "up", block.up_proj(data), data)
        act = block.act_fn(gate) * up
        out = lora(e, "down", block.down_proj(act), act)
        final.index_add_(0, top_x, out * weights[top_x, idx, None])
    return final.view_as(x), logits


def authors_balance(logits, experts, top_k):
    """Over the concatenated logits of all blocks, without a mask."""
    probabilities = torch.softmax(logits, -1)
    mask = F.one_hot(torch.topk(probabilities, top_k, dim=-1).indices, experts)
    return (mask.float().mean(0) * probabilities.mean(0)).sum() * experts


@pytest.mark.parametrize("storage", ["none", "nf4_reference", "int8_reference"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_block_is_the_authors_on_every_storage(storage, top_k):
    adapter, block = make(storage, experts=6, top_k=top_k)
    x = torch.randn(2, 9, HIDDEN)
    torch.testing.assert_close(adapter(x, block), authors(adapter, block, x)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_without_changes_the_experts_are_the_frozen_block(storage):
    adapter, block = make(storage, trained=False)
    nn.init.normal_(adapter.router)
    x = torch.randn(5, HIDDEN)
    torch.testing.assert_close(adapter(x, block), block(x), atol=1e-6, rtol=1e-6)


def test_equal_experts_make_the_router_irrelevant():
    adapter, block = make(experts=4)
    for name in ("gate", "up", "down"):
        A, B = adapter.get_parameter(f"A_{name}"), adapter.get_parameter(f"B_{name}")
        A.data = A.data[:4].repeat(4, 1)
        B.data = B.data[:, :4].repeat(1, 4)
    x = torch.randn(5, HIDDEN)
    before = adapter(x, block)
    nn.init.normal_(adapter.router)
    torch.testing.assert_close(adapter(x, block), before)


def test_one_expert_is_a_lora_on_each_of_the_three_maps():
    adapter, block = make(experts=1, top_k=1)
    loras = copy.deepcopy(block)
    for name in ("gate", "up", "down"):
        base = getattr(block, f"{name}_proj")
        plain = LoRA(
            LoRA.Config(method="lora", rank=4, alpha=8.0), Site("s", base.in_features, base.out_features)
        )
        plain.load_state_dict({k: adapter.get_parameter(f"{k}_{name}") for k in "AB"})
        setattr(loras, f"{name}_proj", Adapted(base, plain))
    x = torch.randn(5, HIDDEN)
    torch.testing.assert_close(adapter(x, block), loras(x))


def test_the_order_of_the_experts_does_not_matter():
    adapter, block = make(experts=4)
    x, order = torch.randn(2, 3, HIDDEN), torch.tensor([2, 0, 3, 1])
    before, rows = adapter(x, block), (order[:, None] * 4 + torch.arange(4)).flatten()
    for name in ("gate", "up", "down"):
        adapter.get_parameter(f"A_{name}").data = adapter.get_parameter(f"A_{name}").data[rows]
        adapter.get_parameter(f"B_{name}").data = adapter.get_parameter(f"B_{name}").data[:, rows]
    adapter.router.data = adapter.router.data[order]
    torch.testing.assert_close(adapter(x, block), before)


def test_blocks_are_balanced_together_as_in_the_authors_code():
    shared, logits, made = MixLoRA.shared(config(), {}, HIDDEN), [], []
    for layer in range(3):
        torch.manual_seed(layer)
        block, site = Block(), Site(f"model.layers.{layer}.mlp", HIDDEN, HIDDEN, kind="mlp")
        adapter = MixLoRA.at(config(experts=4), site, shared)
        adapter.fit(block)
        nn.init.normal_(adapter.router)
        x = torch.randn(2, 5, HIDDEN)
        adapter(x, block)
        logits.append(authors(adapter, block, x)[1])
        made.append(adapter)
    penalties = [adapter.penalty() for adapter in made]
    assert penalties[1:] == [None, None]
    torch.testing.assert_close(penalties[0], 1e-3 * authors_balance(torch.cat(logits), 4, 2))
    apart = sum(1e-3 * authors_balance(part, 4, 2) for part in logits) / 3
    assert (penalties[0] - apart).abs() > 1e-6


def test_jitter_leaves_its_input_and_evaluation_alone():
    adapter, block = make(jitter=0.5)
    x = torch.randn(5, HIDDEN)
    kept = x.clone()
    noisy = adapter(x, block)
    assert torch.equal(x, kept)
    calm = adapter.eval()(x, block)
    assert not torch.allclose(noisy, calm)
    torch.testing.assert_close(calm, authors(adapter, block, x)[0], atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_near_float32():
    adapter, block = make()
    x, low = torch.randn(40, HIDDEN).bfloat16(), copy.deepcopy(block)
    for name in ("gate_proj", "up_proj", "down_proj"):
        base = getattr(block, name)
        setattr(low, name, QUANTIZERS.get("none")(base.weight().bfloat16()))
        setattr(block, name, QUANTIZERS.get("none")(base.weight().bfloat16().float()))
    got = adapter(x, low)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), adapter(x.float(), block), atol=0.1, rtol=5e-2)


def test_a_block_of_another_form_is_refused():
    adapter = MixLoRA(config(), SITE)
    plain = nn.Module()
    plain.c_fc, plain.c_proj, plain.act = nn.Linear(16, 40), nn.Linear(40, 16), nn.GELU()
    with pytest.raises(
        ValueError, match="of gate_proj, up_proj, down_proj and act_fn, but it holds c_fc, c_proj"
    ):
        adapter.fit(plain)
    block = Block()
    block.forward = lambda x: 2 * Block.forward(block, x)
    with pytest.raises(ValueError, match="a block that computes down_proj"):
        adapter.fit(block)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ValidationError, match="top_k is 3, but there are 2 experts"):
        config(experts=2, top_k=3)


def test_a_llama_7b_block_trains_what_the_formula_says():
    adapter = MixLoRA(MixLoRA.Config(method="mixlora"), Site("s", 4096, 4096, kind="mlp"))
    block = nn.Module()
    with torch.device("meta"):
        block.gate_proj, block.up_proj = (
            nn.Linear(4096, 11008, bias=False),
            nn.Linear(4096, 11008, bias=False),
        )
        block.down_proj, block.act_fn = nn.Linear(11008, 4096, bias=False), nn.SiLU()
    adapter.fit(block)
    assert sum(p.numel() for p in adapter.parameters()) == 8 * (3 * 16 * (4096 + 11008) + 4096) == 5_832_704


def on_a_model(tiny, family="llama", storage="nf4_reference", checkpointing=False):
    model = load_model(ModelSection(name=str(tiny(family)), dtype="float32", attention="sdpa"))
    settings = config(experts=4)
    plan = {name: SitePlan(site, settings) for name, site in sites_of(model, MixLoRA.site_kinds).items()}
    stored = QUANTIZERS.declared(storage).config(method=storage)

    def quantize(weight, bias=None, **_):
        return QUANTIZERS.get(storage)(weight, bias, stored)

    init = INITS.get("default")(INITS.declared("default").config(method="default"))
    attach(model, plan, SiteBuilder(quantize, MixLoRA, settings, init))
    if checkpointing:
        model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for _, site in adapted(model.hf):
        torch.manual_seed(3)
        for name, parameter in site.adapter.named_parameters():
            nn.init.normal_(parameter, std=0.1) if name.startswith(("B", "router")) else None
    return model.train()


def test_on_a_quantized_model_attention_gets_lora_and_mlps_get_experts(tiny):
    model = on_a_model(tiny)
    sites = dict(adapted(model.hf))
    kinds = {name.rpartition(".")[2]: type(site.adapter) for name, site in sites.items()}
    assert kinds.pop("mlp") is MixLoRA
    assert kinds.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(issubclass(kind, LoRA) for kind in kinds.values())
    with pytest.raises(NotMergeable):
        sites["model.layers.0.mlp"].adapter.delta_weight(torch.zeros(1, 1))


def test_activation_checkpointing_changes_no_gradient_of_loss_and_balance(tiny):
    batch, gradients = batch_of([DOCUMENTS], 17), []
    for checkpointing in (False, True):
        model = on_a_model(tiny, checkpointing=checkpointing)
        with computing(batch):
            loss = model.hidden(batch).square().mean()
            penalties = [site.adapter.penalty() for _, site in adapted(model.hf)]
            (loss + 100 * sum(p for p in penalties if p is not None)).backward()
        gradients.append({n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None})
        assert all(site.adapter.penalty() is None for _, site in adapted(model.hf))
    assert gradients[0].keys() == gradients[1].keys() and any("router" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_models_with_other_blocks_are_refused_by_a_sentence(tiny, family):
    with pytest.raises(RecipeError, match="needs a block of gate_proj"):
        on_a_model(tiny, family, storage="none")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_every_gated_family_is_taken(tiny, family):
    model = load_model(ModelSection(name=str(tiny(family)), dtype="float32", attention="eager"))
    block = next(m for n, m in model.hf.named_modules() if n.endswith("layers.0.mlp"))
    adapter = MixLoRA(config(), Site("m", 64, 64, kind="mlp"))
    adapter.fit(block)
    x = torch.randn(3, 64)
    torch.testing.assert_close(adapter(x, block), block(x), atol=1e-5, rtol=1e-5)
