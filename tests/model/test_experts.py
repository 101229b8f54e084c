"""Experts taken apart: the mixture stays what transformers computes, every matrix of an expert is a linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.build.adapt import adapt
from lrft.core.adapted import Adapted, adapted
from lrft.core.frozen import FrozenLinear
from lrft.core.grouped import Grouped
from lrft.core.stages import Statistic
from lrft.core.tokens import Tokens
from lrft.export.merge import merge_into
from lrft.export.write import write_merged
from lrft.model.along_path import measure_along_path
from lrft.model.apart import DOWN, Apart, first_name
from lrft.model.calibrate import calibrate
from lrft.model.experts import group, join, split
from lrft.model.load import load_model
from lrft.model.matrices import matrices
from lrft.model.sites import expert_sites, linear_sites, mlp_sites, sites_of
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import parameter_infos
from lrft.ops.by_expert import ByExpert
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OBJECTIVES, QUANTIZERS
from lrft.registry.errors import DataError, RecipeError
from tests.each import each
from tests.model.test_families import batch_of
from tests.recipe.valid_recipe import VALID, problems_of

# Halves one after another and interleaved, weights as (out, in) and (in, out), biases, shared experts, a dense layer.
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe", "deepseek_v3"]
ROWS = [[[5, 6, 7, 8, 9, 10], [11, 12, 13]], [[14, 15, 16, 17]]]


def section_of(folder, experts="split", **more):
    return ModelSection(name=str(folder), dtype="float32", attention="segmented", experts=experts, **more)


def recipe_of(folder, adapter=None, quantization="none", **more):
    adapter = {"method": "lora", **({} if "method" in (adapter or {}) else {"rank": 4}), **(adapter or {})}
    written = {"model": section_of(folder).model_dump(), "adapter": adapter, "quantization": quantization}
    return Recipe.model_validate({**written, "data": {"train": "x.jsonl", "format": "text"}, **more})


def moved(recipe):
    """The model with its adapters, their numbers moved off the start."""
    model = adapt(recipe).model
    torch.manual_seed(4)
    with torch.no_grad():
        for info in parameter_infos(model):
            info.param.add_(0.05 * torch.randn_like(info.param))
    return model


def gradients(model, batch):
    """Hidden states and the gradient of everything that trains, of a loss that tells all numbers apart."""
    model.train()
    model.zero_grad()
    hidden = model.hidden(batch)
    (hidden * torch.arange(hidden.numel()).view_as(hidden).sin()).sum().backward()
    found = {i.name: i.param.grad.clone() for i in parameter_infos(model) if i.param.grad is not None}
    return hidden.detach(), found


@each("family", FAMILIES)
def test_a_mixture_taken_apart_is_the_mixture_that_transformers_computes(family, tiny):
    whole, apart = (load_model(section_of(tiny(family), experts)) for experts in ("whole", "split"))
    batch = batch_of(ROWS, 10)
    with torch.no_grad():
        torch.testing.assert_close(apart(batch), whole(batch), atol=1e-6, rtol=1e-6)
    names = {name for name, p in whole.hf.named_parameters() if p.ndim == 3}
    join(apart.hf)
    before, after = (dict(model.hf.named_parameters()) for model in (whole, apart))
    assert names and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert {type(m) for m in whole.hf.modules()} == {type(m) for m in apart.hf.modules()}


@each("family", ["mixtral", "gpt_oss"])
def test_what_goes_in_gets_the_gradient_that_it_gets_in_transformers(family, tiny):
    found = []
    for experts in ("whole", "split"):
        hf = load_model(section_of(tiny(family), experts)).hf
        block = next(m for m in hf.modules() if hasattr(m, "num_experts") and hasattr(m, "_apply_gate"))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(7, 64, generator=generator).requires_grad_()
        chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(7)])
        weights = torch.rand(7, 2, generator=generator).requires_grad_()
        block(x, chosen, weights).sin().sum().backward()
        found.append((x.grad, weights.grad))
    for whole, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, whole, atol=1e-6, rtol=1e-5)


def test_every_matrix_of_an_expert_is_a_site_and_counted(tiny):
    whole, apart = (load_model(section_of(tiny("qwen2_moe"), e)) for e in ("whole", "split"))
    sites = linear_sites(apart)
    experts = expert_sites(apart)
    assert set(sites) - set(experts) == set(linear_sites(whole)) and not expert_sites(whole)
    assert len(experts) == 2 * 4 * 2  # layers, experts, matrices
    up = experts["model.layers.1.mlp.experts.3.gate_up_proj"]
    assert (up.kind, up.in_features, up.out_features) == ("expert", 64, 2 * 32)
    assert mlp_sites(apart) == mlp_sites(whole)  # a block is not wider for the experts in it
    assert sites_of(apart, ("expert",)) == experts
    reached, missed = matrices(apart), matrices(whole)
    assert "model.experts: split reaches" in missed.sentence() and "split" not in reached.sentence()
    assert reached.total == missed.total and reached.unreached < 0.01 < missed.unreached


def test_a_model_without_weights_is_taken_apart_for_counting(tiny):
    loaded, meta = (load_model(section_of(tiny("mixtral")), meta=meta) for meta in (False, True))
    assert linear_sites(meta) == linear_sites(loaded)
    assert meta.direct == loaded.direct


def test_whoever_has_no_experts_is_told(tiny):
    with pytest.raises(
        RecipeError, match=r"model\.experts: LlamaForCausalLM has no experts that .*write whole"
    ):
        load_model(section_of(tiny("llama")))


def test_tokens_come_back_in_their_order_and_gradients_with_them():
    chosen = torch.tensor([[2, 0], [0, 3], [3, 2]])
    by = ByExpert.of(chosen, 5)
    assert by.counts == [2, 0, 2, 2, 0]
    assert [by.tokens(e).tolist() for e in range(5)] == [[0, 1], [], [0, 2], [1, 2], []]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    spread = by.spread(x)
    assert torch.equal(spread, x[[0, 1, 0, 2, 1, 2]])
    assert torch.equal(by.gathered(spread), 2 * x)
    torch.autograd.gradcheck(lambda x: by.gathered(by.spread(x).sin()), x)


@each(
    ("family", "adapter"),
    [
        ("mixtral", {}),
        ("gpt_oss", {}),
        ("mixtral", {"targets": ["experts.0.*", "q_proj"]}),
        ("mixtral", {"rslora": True, "rank_pattern": {"experts.1.*": 3}, "rank": 2}),
    ],
)
def test_the_product_of_all_experts_is_theirs_one_by_one(family, adapter, tiny, monkeypatch):
    model = moved(recipe_of(tiny(family), adapter))
    batch = batch_of([[[5]]], 1)  # which two experts see, and two do not
    taken = []
    one_product = Grouped.product
    with monkeypatch.context() as patch:
        note = lambda self, x, by: taken.append(one_product(self, x, by)) or taken[-1]  # noqa: E731
        patch.setattr(Grouped, "product", note)
        together, at_once = gradients(model, batch)
        assert len(taken) == 4 and all(y is not None for y in taken)
        patch.setattr(Grouped, "product", lambda self, x, by: None)
        alone, one_by_one = gradients(model, batch)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert at_once.keys() == one_by_one.keys()
    assert len(at_once) < len(
        parameter_infos(model)
    )  # an expert without a token has no gradient, and not zeros
    for name, gradient in one_by_one.items():
        torch.testing.assert_close(at_once[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dropped", [False, True])
def test_one_product_gives_way_to_whatever_is_more_than_dense_weights_and_low_rank_terms(tiny, dropped):
    model = moved(recipe_of(tiny("mixtral"), {"dropout": 0.5 if dropped else 0.0}))
    block = next(m for m in model.hf.modules() if isinstance(m, Apart))
    held, x = block.groups[DOWN], torch.randn(6, 128)
    by = ByExpert.of(torch.tensor([[0], [1], [1], [2], [3], [3]]), 4)
    site = held.layers[1]
    model.train()
    torch.manual_seed(0)
    assert held.product(x, by) is not None
    if dropped:
        model.eval()
        assert torch.equal(held.product(x, by), held.product(x, by))
        return
    handle = site.register_forward_hook(lambda *_: None)
    assert held.product(x, by) is None
    handle.remove()
    site.base.write(site.base.weight())  # restarts and quantizers leave another weight behind
    assert held.product(x, by) is None
    site.base.edited = False
    assert held.product(x, by) is not None
    assert held.product(x.bfloat16(), by) is None


@each("storage", ["nf4_reference", "fp4", "int8"])
def test_a_base_in_few_bits_is_stored_expert_by_expert_and_decoded_where_a_token_goes(
    storage, tiny, monkeypatch
):
    dense = load_model(section_of(tiny("mixtral")))
    model = moved(recipe_of(tiny("mixtral"), quantization=storage))
    kind = QUANTIZERS.get(storage)
    for name in expert_sites(dense):
        base = model.hf.get_submodule(name).base
        expected = kind(dense.hf.get_submodule(name).weight)
        assert isinstance(base, kind) and torch.equal(base.weight(), expected.weight()), name
    block = next(m for m in model.hf.modules() if isinstance(m, Apart))
    assert not block.groups
    decoded, weight = [], kind.weight
    monkeypatch.setattr(kind, "weight", lambda self: decoded.append(self) or weight(self))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        block.train()(torch.randn(2, 64), torch.tensor([[0, 3], [3, 0]]), torch.rand(2, 2))
    hit = [block.get_submodule(f"{e}.{name}").base for e in (0, 3) for name in (first_name(block), DOWN)]
    assert {id(base) for base in decoded} == {id(base) for base in hit}
    assert not {(128, 64), (256, 64), (64, 128)} & set(kept)  # no dense weight waits for the backward pass


def test_what_an_expert_keeps_for_the_backward_pass_is_of_its_tokens_alone(tiny):
    model = moved(recipe_of(tiny("mixtral")))
    block = next(m for m in model.hf.modules() if isinstance(m, Apart))
    tokens, copies = 16, 2
    kept: dict[int, int] = {}
    held = {p.untyped_storage().data_ptr() for p in model.parameters()} | {
        b.untyped_storage().data_ptr() for b in model.buffers()
    }

    def note(tensor):
        if (at := tensor.untyped_storage().data_ptr()) not in held and tensor.is_floating_point():
            kept[at] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(tokens, 64, requires_grad=True)
    chosen = torch.arange(tokens * copies).view(tokens, copies) % 4
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = block.train()(x, chosen, torch.rand(tokens, copies, requires_grad=True))
    # A copy of a token keeps its input, gate and up, what they give, its output, two ranks, and a weight.
    a_copy = 64 + 2 * 128 + 128 + 64 + 2 * 4 + 1
    factors = 4 * 4 * ((64 + 256) + (128 + 64))
    assert sum(kept.values()) <= 4 * (tokens * copies * a_copy + factors), y.shape


def test_checkpointing_changes_no_gradient(tiny):
    batch = batch_of(ROWS, 10)
    plain = moved(recipe_of(tiny("mixtral"), quantization="int8"))
    recipe = recipe_of(tiny("mixtral"), quantization="int8")
    section = recipe.model.model_copy(update={"activation_checkpointing": True})
    again = moved(recipe.model_copy(update={"model": section}))
    (_, one), (_, other) = gradients(plain, batch), gradients(again, batch)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each(
    ("family", "method", "storage"),
    [
        ("mixtral", "lora", "nf4_reference"),
        ("qwen2_moe", "dora", "none"),
        ("qwen3_moe", "hira", "int8"),
        ("olmoe", "oft", "none"),
        ("gpt_oss", "lora", "none"),
    ],
)
def test_merged_experts_are_read_by_plain_transformers(family, method, storage, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    recipe = recipe_of(tiny(family), {"method": method}, storage)
    model = moved(recipe).eval()
    batch = batch_of([[[5, 6, 7, 8, 9, 10]]], 6)
    with torch.no_grad():
        expected = model(batch)
    dense = load_model(recipe.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    folder = tmp_path / f"{family}-{method}"
    write_merged(dense, load_tokenizer(recipe.model)[0], folder, "1GB")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        got = plain(input_ids=batch.input_ids).logits
        before = load_model(recipe.model)(batch)
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


class Seen(Statistic):
    """The inputs of real tokens, of answers, and the outputs' gradients, summed."""

    def __init__(self):
        self.real, self.answers, self.given = 0, 0, 0

    def update(self, x, dy, tokens):
        self.real = self.real + x[tokens.real].sum(0)
        self.answers = self.answers + x[tokens.answers].sum(0)
        self.given += tokens.supervised.numel()

    def result(self):
        return torch.stack([self.real, self.answers])


def test_a_statistic_at_an_expert_is_of_the_tokens_that_chose_it_padding_left_out(tiny):
    model = load_model(section_of(tiny("mixtral")))
    batch = batch_of(ROWS, 10)
    sites = {name: site for name, site in expert_sites(model).items() if name.startswith("model.layers.0.")}
    objective = OBJECTIVES.get("cross_entropy")(OBJECTIVES.declared("cross_entropy").config())
    found = calibrate(model, sites, [batch], objective, lambda site, name: Seen(), ["seen"])
    block = model.hf.get_submodule("model.layers.0.mlp")
    held = []
    handle = block.gate.register_forward_hook(lambda gate, x, y: held.append((x[0].detach(), y[2])))
    model.train()
    model.hidden(batch)
    handle.remove()
    (x, chosen) = held[0]
    real = [row * 10 + place for row, start, end in batch.documents for place in range(start, end)]
    answers = (batch.supervised + 1).tolist()
    for number in range(4):
        mine = {token for token in range(20) if number in chosen[token].tolist()}
        expected = [x[sorted(mine & set(which))].sum(0) for which in (real, answers)]
        name = f"model.layers.0.mlp.experts.{number}.gate_up_proj"
        torch.testing.assert_close(found[name]["seen"], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_rows_of_an_expert_are_found_by_token():
    tokens = Tokens(torch.tensor([0, 1, 2, 5]), torch.tensor([1, 4]))
    assert tokens.answers.tolist() == [2, 5]
    own = tokens.of_expert(torch.tensor([5, 3, 2]))
    assert (own.real.tolist(), own.answers.tolist(), own.supervised.tolist()) == ([0, 2], [0, 2], [1, 4])


def test_what_is_measured_at_the_end_of_a_row_is_refused_at_experts(tiny):
    model = load_model(section_of(tiny("mixtral")))
    with pytest.raises(DataError, match=r"experts\.0.*seen is measured at the last token.*leave experts out"):
        measure_along_path(model, expert_sites(model), [], lambda *_: Seen(), ["seen"], lambda _: None)


@each("method", ["flylora", "lte", "ssmlora"])
def test_adapters_that_are_more_than_a_change_of_a_matrix_are_refused_at_experts_alone(method, tiny):
    settings = {"lte": {"heads": 2}}.get(method, {})
    recipe = recipe_of(tiny("mixtral"), {"method": method, **settings})
    with pytest.raises(RecipeError, match=rf"adapter\.targets: {method} is more than .*exclude: \['experts"):
        adapt(recipe)
    elsewhere = recipe.model_copy(
        update={"adapter": recipe.adapter.model_copy(update={"exclude": ["experts.*"]})}
    )
    sites = [site for _, module in adapted(adapt(elsewhere).model.hf) if (site := module.adapter.site)]
    assert sites and all(site.kind == "linear" for site in sites)


def test_a_mixture_that_has_no_dense_block_for_mixlora_is_refused_until_its_blocks_are_left_out(tiny):
    recipe = recipe_of(tiny("mixtral"), {"method": "mixlora"})
    with pytest.raises(
        RecipeError, match=r"layers\.0\.mlp: needs a block of gate_proj, .* but it holds gate, experts"
    ):
        adapt(recipe)
    elsewhere = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"exclude": ["mlp"]})})
    sites = [module.adapter.site for _, module in adapted(adapt(elsewhere).model.hf)]
    assert sites and all(site.kind == "linear" for site in sites)


def test_experts_and_shards_are_refused_together(tmp_path):
    (tmp_path / "recipe.yaml").write_text(VALID)
    problems = problems_of(tmp_path / "recipe.yaml", "model.experts=split", "train.shard_base=true")
    assert [p.message for p in problems if p.key == "model.experts"] == [
        "its experts would be gathered by processes whose tokens chose others; write whole, or train.shard_base: false"
    ]


def test_weights_of_experts_that_train_themselves_are_merged_too(tiny):
    recipe = recipe_of(tiny("mixtral"), {"targets": ["q_proj"]}, trainable=["experts.1.down_proj.weight"])
    model = moved(recipe)
    assert not any(DOWN in m.groups for m in model.hf.modules() if isinstance(m, Apart))
    batch = batch_of([[[5]]], 1)
    assert torch.equal(gradients(model, batch)[0], gradients(model, batch)[0])
    infos = {info.name: info for info in parameter_infos(model)}
    own = [name for name in infos if "experts" in name]
    assert len(own) == 2 and all(infos[name].sparse and infos[name].role == "matrix" for name in own)
    dense = load_model(recipe.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    merged = dense.hf.get_parameter("model.layers.0.mlp.experts.down_proj")
    assert torch.equal(merged[1], infos["model.layers.0.mlp.experts.1.down_proj.weight"].param)


def test_dense_experts_share_one_tensor_and_take_no_second_copy(tiny):
    model = load_model(section_of(tiny("mixtral")))
    block = next(m for m in model.hf.modules() if isinstance(m, Apart))
    weights = [block.get_submodule(f"{e}.{DOWN}").weight for e in range(4)]
    at = weights[0].data_ptr()
    assert [w.data_ptr() - at for w in weights] == [e * weights[0].nbytes for e in range(4)]
    made = adapt(recipe_of(tiny("mixtral"))).model
    block = next(m for m in made.hf.modules() if isinstance(m, Apart))
    held = block.groups[DOWN]
    assert held.weight.shape == (4, 64, 128)
    assert all(held.weight[e].data_ptr() == base.weight().data_ptr() for e, base in enumerate(held.bases))
    assert all(isinstance(layer, Adapted) and isinstance(layer.base, FrozenLinear) for layer in held.layers)


def test_taking_apart_twice_is_taking_apart_once(tiny):
    hf = load_model(section_of(tiny("mixtral"))).hf
    before = {name: id(module) for name, module in hf.named_modules()}
    split(hf)
    group(hf)  # layers that are not in their storages yet are left alone
    assert before == {name: id(module) for name, module in hf.named_modules()}
    assert not any(module.groups for module in hf.modules() if isinstance(module, Apart))
    assert all(isinstance(hf.get_submodule(name), nn.Linear) for name in before if name.endswith(DOWN))
