"""What every adapter that changes norms or the embedding promises, on whole tiny models: a change of parameters."""

from __future__ import annotations

import copy

import pytest
import torch

from lrft.core.adapted import adapted, adapters_off
from lrft.core.batch import Batch
from lrft.core.block import AdaptedBlock
from lrft.export.changes import relative_change
from lrft.export.merge import check_mergeable, merge_into
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.fused import fuse
from lrft.model.load import load_model
from lrft.model.sites import choose, sites_of
from lrft.model.trained import load_trained_tensors, parameter_infos, trained_tensors
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS
from lrft.registry.errors import RecipeError

NAMES = [name for name in ADAPTERS.names() if "block_parameters" in ADAPTERS.declared(name).provides]
ALL = pytest.mark.parametrize("name", NAMES)
FAMILIES = pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", True), ("llama", False), ("qwen3", True), ("gemma3_text", True), ("gpt2", True)],
)
NEEDED = {"ids": [5, 9, 300]}  # of settings: those without a default
BIASED = ("gpt2",)  # families with a bias at every site
IDS = torch.tensor([[5, 6, 9, 9, 300, 11, 5]])


@pytest.fixture
def make(tiny):
    """`make(name)` -> a tiny model with the adapter at every site that it goes on."""

    def build(name, family="llama", tied=True, storage="none", dtype="float32", move=0.1, **settings):
        model = load_model(ModelSection(name=str(tiny(family, tied=tied)), dtype=dtype))
        cls, fields = ADAPTERS.get(name), ADAPTERS.declared(name).config.model_fields
        needed = {**NEEDED, "shift": family in BIASED}
        given = {key: value for key, value in needed.items() if key in fields} | settings
        config, stored = ADAPTERS.settings(name, **given), QUANTIZERS.settings(storage)

        def store(weight, bias=None, **_):
            return QUANTIZERS.get(storage)(weight, bias, stored)

        init = INITS.get("default")(INITS.settings("default"))
        attach(
            model, make_plan(sites_of(model, cls.site_kinds), config), SiteBuilder(store, cls, config, init)
        )
        torch.manual_seed(3)
        with torch.no_grad():
            for info in parameter_infos(model):
                info.param.add_(move * torch.randn_like(info.param))
        return model.eval()

    return build


def batch() -> Batch:
    none, length = torch.empty(0, dtype=torch.long), IDS.shape[1]
    return Batch(IDS, torch.arange(length)[None], ((0, 0, length),), none, none)


def base_of(tiny, family="llama", tied=True, dtype="float32"):
    return load_model(ModelSection(name=str(tiny(family, tied=tied)), dtype=dtype)).eval()


@torch.no_grad()
def logits(model):
    return model(batch()).float()


@ALL
@FAMILIES
def test_the_merged_model_is_the_trained_one(make, tiny, name, family, tied):
    model, dense = make(name, family, tied), base_of(tiny, family, tied)
    before = logits(dense)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    torch.testing.assert_close(logits(dense), logits(model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(dense), before, atol=1e-3)
    begins_at_0 = family == "gemma3_text" and name == "ln_tuning"
    assert relative_change(model) is None if begins_at_0 else relative_change(model) > 0
    head, embedding = dense.hf.get_output_embeddings(), dense.hf.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied


@ALL
@pytest.mark.parametrize("storage", ["none", "nf4_reference", "int8"])
def test_switched_off_it_is_the_base_on_every_storage(make, name, storage):
    model, bare = make(name, storage=storage), make(name, storage=storage, move=0.0)
    with adapters_off(model), adapters_off(bare):
        assert torch.equal(logits(model), logits(bare))
    assert not torch.allclose(logits(model), logits(bare), atol=1e-3)


@ALL
def test_what_trains_gets_a_gradient_and_nothing_else_recomputed_too(make, name):
    gradients = []
    for recomputed in (False, True):
        model = make(name).train()
        if recomputed:
            model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.hidden(batch()).square().sum().backward()
        infos = parameter_infos(model)
        assert all(info.param.grad.abs().sum() > 0 for info in infos)
        assert {info.param.dtype for info in infos} == {torch.float32}
        known = {id(info.param) for info in infos}
        assert not [key for key, p in model.named_parameters() if p.grad is not None and id(p) not in known]
        gradients.append([info.param.grad for info in infos])
    torch.testing.assert_close(*gradients)


@ALL
def test_half_precision_stays_half_precision_and_its_state_comes_back(make, name):
    one, other = make(name, dtype="bfloat16"), make(name, dtype="bfloat16", move=0.0)
    assert one.hidden(batch()).dtype == torch.bfloat16
    load_trained_tensors(other, copy.deepcopy(trained_tensors(one)))
    assert torch.equal(logits(one), logits(other))


@ALL
def test_counts_and_roles_are_the_declared_ones(make, name):
    model = make(name)
    for _, module in adapted(model.hf):
        part = module.adapter
        trained = {key: p for key, p in part.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == type(part).count(part.config, part.site)
        assert trained.keys() <= part.roles.keys()


@ALL
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_norms_in_one_node_give_the_same_and_its_gradients(make, name, family):
    found = []
    for fused in (False, True):
        model = make(name, family).train()
        if fused:
            assert fuse(model.hf)["norms"] > 0
        hidden = model.hidden(batch())
        hidden.square().sum().backward()
        found.append([hidden, *(info.param.grad for info in parameter_infos(model))])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@ALL
def test_what_trains_itself_bears_no_adapter(make, tiny, name):
    model = base_of(tiny)
    for module in (model.hf.get_input_embeddings(), *(m for n, m in model.hf.named_modules() if "norm" in n)):
        module.requires_grad_(True)
    cls, fields = ADAPTERS.get(name), ADAPTERS.declared(name).config.model_fields
    config = ADAPTERS.settings(name, **{key: value for key, value in NEEDED.items() if key in fields})
    sites = {key: site for key, site in sites_of(model, cls.site_kinds).items() if site.kind != "linear"}
    with pytest.raises(RecipeError, match="weight trains itself"):
        attach(model, make_plan(sites, config), SiteBuilder(lambda w, b=None: None, cls, config))


@ALL
def test_it_stands_around_blocks_and_is_mergeable(make, name):
    model = make(name)
    assert any(isinstance(module, AdaptedBlock) for _, module in adapted(model.hf))
    check_mergeable(model)


def test_norms_are_found_by_what_they_hold(tiny):
    found = {family: sites_of(base_of(tiny, family), ("norm",)) for family in ("llama", "qwen3", "gpt2")}
    of_a_block = {"llama": 2, "qwen3": 4, "gpt2": 2}  # those of queries and keys too
    assert {family: len(sites) for family, sites in found.items()} == {
        f: 2 * n + 1 for f, n in of_a_block.items()
    }
    assert (
        found["qwen3"]["model.layers.0.self_attn.q_norm"].out_features
        < found["qwen3"]["model.norm"].out_features
    )
    assert all(
        site.has_bias == (family == "gpt2") for family, sites in found.items() for site in sites.values()
    )
    with pytest.raises(
        RecipeError, match=r"'input_layernrm' matches no site of the adapter; did you mean input_layernorm"
    ):
        choose(found["llama"], ["input_layernrm"])
