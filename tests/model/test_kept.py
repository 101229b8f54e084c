"""Keys and values as attention keeps them: a rounding in transformers' own code beside it, its cache, and refusals."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.core.params import Site
from lrft.methods.adapters.roste import RoSTE
from lrft.methods.signals.kept_error import KeptError
from lrft.model.batching import stock_attention
from lrft.model.calibrate import calibrate
from lrft.model.load import load_model
from lrft.ops.hadamard import rotation_of
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import NotMergeable, RecipeError
from tests.each import each
from tests.model.test_families import batch_of

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "glm"]
ROWS = [[[5, 6, 7, 8, 9, 10], [11, 12, 13]], [[14, 15, 16, 17]]]


def recipe_of(folder, *, attention="segmented", **settings):
    model = ModelSection(name=str(folder), dtype="float32", attention=attention).model_dump()
    adapter = {
        "method": "roste",
        "bits": 8,
        "activation_bits": None,
        "cache_bits": 3,
        "clip": 0.9,
        **settings,
    }
    written = {"model": model, "adapter": adapter, "data": {"train": "x.jsonl", "format": "text"}}
    return Recipe.model_validate(written)


def moved(recipe, turned=False):
    model = adapt(recipe).model
    torch.manual_seed(4)
    for _, site in adapted(model.hf):
        with torch.no_grad():
            site.adapter.D.normal_(std=0.02)
        site.adapter.turn_kept(turned)
    return model.eval()


def theirs(x, bits, clip):
    """The authors' quantizer of keys and values, written anew: a grid a head of a token, no 0 forced onto it."""
    most, high, low = 2**bits - 1, x.amax(-1, keepdim=True) * clip, x.amin(-1, keepdim=True) * clip
    step = (high - low) / most
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(0, most) - zero) * step


@contextmanager
def rounded_in_transformers(hf, bits, clip, turned):
    """Queries and keys rotated and rounded in the module of the family; values turned back where they are used."""
    module = importlib.import_module(type(hf).__module__)
    own, handles = module.apply_rotary_pos_emb, []
    width = hf.model.layers[0].self_attn.head_dim
    R = rotation_of(width).turn(torch.eye(width)) if turned else torch.eye(width)

    def rotate(q, k, *arguments, **named):
        q, k = own(q, k, *arguments, **named)
        return q @ R, theirs(k @ R, bits, clip)

    def values(layer, inputs, output):
        return theirs(output.unflatten(-1, (-1, width)) @ R, bits, clip).flatten(-2)

    def back(layer, inputs):
        return ((inputs[0].unflatten(-1, (-1, width)) @ R.mT).flatten(-2),)

    for layer in hf.model.layers:
        handles.append(layer.self_attn.v_proj.register_forward_hook(values))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(back))
    module.apply_rotary_pos_emb = rotate
    try:
        yield
    finally:
        module.apply_rotary_pos_emb = own
        for handle in handles:
            handle.remove()


@each("family", FAMILIES)
@each("turned", [False, True])
def test_it_is_the_authors_rounding_in_the_code_of_transformers(family, turned, tiny):
    from transformers import AutoModelForCausalLM

    ours = moved(recipe_of(tiny(family)), turned)
    hf = AutoModelForCausalLM.from_pretrained(tiny(family), attn_implementation="eager", dtype=torch.float32)
    for name, site in adapted(ours.hf):
        weight = hf.get_submodule(name).weight
        weight.data = site.adapter.merged(site.base.weight()).detach().clone()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        plain = hf(ids).logits
        with rounded_in_transformers(hf, 3, 0.9, turned):
            expected = hf(ids).logits
        found = ours(batch_of([[ids[0].tolist()]], 7))
    assert (plain - expected).abs().max() > 1e-3, "the rounding is seen"
    torch.testing.assert_close(found.view_as(expected), expected, atol=2e-4, rtol=2e-4)


@each("family", ["llama", "qwen3"])
def test_what_generation_reads_back_is_what_training_attends_to(family, tiny):
    model = moved(recipe_of(tiny(family)), turned=True)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad(), stock_attention(model.hf):
        whole = model.hf(ids, use_cache=False).logits
        cache, last = None, []
        for place in range(7):
            out = model.hf(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            last.append(out.logits[:, -1])
    torch.testing.assert_close(torch.stack(last, 1), whole, atol=1e-4, rtol=1e-4)
    width = model.hf.model.layers[0].self_attn.head_dim
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            rows = rotation_of(width).turn(part).flatten(0, -2)
            assert all(len(row.div(1e-4).round().unique()) <= 8 for row in rows), "3 bits a head of a token"


def test_adapters_that_are_off_leave_the_base(tiny):
    model, base = moved(recipe_of(tiny())), load_model(ModelSection(name=str(tiny()), dtype="float32"))
    base.set_attention("segmented")
    batch = batch_of(ROWS, 10)
    for _, site in adapted(model.hf):
        site.enabled = False
    with torch.no_grad():
        torch.testing.assert_close(model(batch), base(batch), atol=1e-6, rtol=1e-6)


def test_gradients_pass_the_rounding_to_what_keys_and_values_come_from(tiny):
    model = moved(recipe_of(tiny(), bits=8, cache_bits=8, clip=1.0))
    exact = moved(recipe_of(tiny(), bits=8, cache_bits=None, clip=1.0))
    batch = batch_of(ROWS, 10)
    for one in (model, exact):
        (one.hidden(batch).sin()).sum().backward()
    for (name, site), (_, other) in zip(adapted(model.hf), adapted(exact.hf), strict=True):
        difference = (site.adapter.D.grad - other.adapter.D.grad).norm()
        assert difference < 0.1 * other.adapter.D.grad.norm(), name


@each("bits", [4, None])
def test_what_is_measured_is_what_rounding_of_real_tokens_costs(bits, tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32", attention="segmented"))
    sites = {f"model.layers.0.self_attn.{leaf}": Site(leaf, 1, 1) for leaf in ("q_proj", "k_proj", "v_proj")}
    batch, heard = batch_of(ROWS, 10), {}
    attention = model.hf.model.layers[0].self_attn
    handle = attention.v_proj.register_forward_hook(lambda m, i, o: heard.update(v_proj=o))
    kind = type(attention)
    objective = OBJECTIVES.get("cross_entropy")(
        OBJECTIVES.get("cross_entropy").Config(method="cross_entropy")
    )
    found = calibrate(model, sites, [batch], objective, lambda *_: KeptError(bits=bits), ["kept_error"])
    handle.remove()
    assert type(attention) is kind and not hasattr(attention, "change_kept")
    if bits is None:
        assert all(not one["kept_error"].any() for one in found.values())
        return
    assert not found["model.layers.0.self_attn.q_proj"]
    values = torch.cat([heard["v_proj"][row, start:end] for row, start, end in batch.documents])
    heads = values.unflatten(-1, (-1, attention.head_dim))
    turned = rotation_of(attention.head_dim).turn(heads)
    expected = [(theirs(v, 4, 1.0) - v).square().sum((1, 2)).mean() for v in (heads, turned)]
    torch.testing.assert_close(
        found["model.layers.0.self_attn.v_proj"]["kept_error"], torch.stack(expected), atol=1e-5, rtol=1e-4
    )


@each("targets", [["self_attn.k_proj"], ["self_attn.q_proj", "self_attn.v_proj"], ["mlp.*"]])
def test_a_rounding_of_half_of_what_is_kept_is_refused(targets, tiny):
    with pytest.raises(RecipeError, match=r"roste changes keys and values as they are kept, .*; name k_"):
        adapt(recipe_of(tiny(), targets=targets))


@each("family", ["phi", "gpt2", "deepseek_v3", "gpt_neox"])
def test_attention_of_another_form_is_refused_in_one_sentence(family, tiny):
    with pytest.raises(RecipeError) as caught:
        adapt(recipe_of(tiny(family)))
    message = str(caught.value)
    assert "keys and values" in message and "\n" not in message


def test_a_cache_that_holds_other_numbers_is_refused(tiny, monkeypatch):
    """A family that changes its keys behind the rotation, as its own code would."""
    from transformers import DynamicCache

    own = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda self, k, v, *more: own(self, 2 * k, v, *more))
    with pytest.raises(RecipeError, match=r"keeps its keys and values in a way that is not known"):
        adapt(recipe_of(tiny()))
    assert adapt(recipe_of(tiny(), cache_bits=None)).model is not None


def test_the_rounding_of_the_cache_is_in_no_weight():
    config = RoSTE.Config(method="roste", activation_bits=None, cache_bits=4)
    assert "cache_bits: null" in RoSTE.why_not_merged(config, Site("a", 8, 8))
    with pytest.raises(NotMergeable):
        from lrft.core.adapted import Adapted
        from lrft.methods.quant.none import Dense

        Adapted(Dense(torch.eye(8)), RoSTE(config, Site("a", 8, 8))).merged_weight()


def test_a_compiled_model_is_refused_before_loading():
    with pytest.raises(RecipeError, match=r"model\.compile: adapter\.cache_bits"):
        load_recipe("smoke/roste_cache", ["model.name=x/y", "model.compile=true"])


def test_the_choice_of_keys_and_values_is_saved_with_the_adapter():
    made = [RoSTE(RoSTE.Config(method="roste", cache_bits=4), Site("a", 8, 8)) for _ in range(2)]
    made[0].turn_kept(True)
    made[1].load_state_dict(made[0].state_dict())
    x = torch.randn(2, 3, 5, 16)
    x[..., 3] *= 30
    assert torch.equal(made[0].kept(x), made[1].kept(x))
    made[0].turn_kept(False)
    assert not torch.equal(made[0].kept(x), made[1].kept(x))
    assert isinstance(made[0], nn.Module) and "kept_rotated" in made[0].state_dict()
    assert "kept_rotated" not in RoSTE(RoSTE.Config(method="roste"), Site("a", 8, 8)).state_dict()
