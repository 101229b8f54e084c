"""What every adapter with virtual tokens promises, on a whole tiny model: documents are as if alone, off is off."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lrft.core.adapted import adapted, adapters_off
from lrft.core.batch import Batch
from lrft.core.virtual import virtual_ids, widen
from lrft.data.collate import collate
from lrft.data.tokenize import Encoded
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.sites import sites_of
from lrft.model.trained import load_trained_tensors, parameter_infos, trained_tensors
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS

TOKENS = 3
NAMES = [name for name in ADAPTERS.names() if "tokens" in ADAPTERS.declared(name).config.model_fields]
ALL = pytest.mark.parametrize("name", NAMES)
FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
TEXTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]


@pytest.fixture
def make(tiny):
    def build(name, family="llama", storage="none", attention="sdpa", **settings):
        section = ModelSection(name=str(tiny(family)), dtype="float32", attention=attention)
        model = load_model(section)
        cls = ADAPTERS.get(name)
        config = ADAPTERS.settings(name, tokens=TOKENS, **settings)
        stored = QUANTIZERS.settings(storage)
        init = INITS.get("default")(INITS.settings("default"))

        def store(weight, bias=None, **_):
            return QUANTIZERS.get(storage)(weight, bias, stored)

        attach(
            model, make_plan(sites_of(model, cls.site_kinds), config), SiteBuilder(store, cls, config, init)
        )
        torch.manual_seed(3)
        for info in parameter_infos(model):
            nn.init.normal_(info.param, std=0.5)
        return model.eval()

    return build


def batch_of(*rows: list[list[int]], width: int | None = None) -> Batch:
    """Rows of documents; every token of them but the last is supervised."""
    encoded = [[Encoded(ids, [False] + [True] * (len(ids) - 1)) for ids in row] for row in rows]
    places = iter(range(99))
    return collate(encoded, 0, width, [[next(places) for _ in row] for row in encoded])


def settings_of(name) -> list[dict]:
    fields = ADAPTERS.declared(name).config.model_fields
    return [{}, {"projection": None}] if "projection" in fields else [{}]


CASES = pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name in NAMES for settings in settings_of(name)], ids=str
)


@torch.no_grad()
def by_hand(model, ids: list[int]) -> torch.Tensor:
    """The hidden states of one document by transformers' own call, virtual ids written before it."""
    wide = torch.tensor([[*virtual_ids(TOKENS), *ids]])
    return model.body(input_ids=wide, use_cache=False).last_hidden_state[0, TOKENS:]


@CASES
@FAMILIES
def test_a_packed_document_is_computed_as_alone(make, name, settings, family):
    model = make(name, family, attention="eager", **settings)
    packed, alone = batch_of([TEXTS[0], TEXTS[1]], [TEXTS[2]]), [batch_of([ids]) for ids in TEXTS]
    with torch.no_grad():
        hidden = model.hidden(packed)
        found = [hidden[0, :5], hidden[0, 5:8], hidden[1, :4]]
        for ids, batch, one in zip(TEXTS, alone, found, strict=True):
            torch.testing.assert_close(one, model.hidden(batch)[0, : len(ids)], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(one, by_hand(model, ids), atol=1e-4, rtol=1e-3)


@CASES
def test_every_backend_computes_the_same(make, name, settings):
    batch = batch_of([TEXTS[0], TEXTS[1]], [TEXTS[2]])
    with torch.no_grad():
        hidden = [make(name, attention=a, **settings).hidden(batch) for a in ("eager", "sdpa", "segmented")]
    for row, start, end in batch.documents:
        for other in hidden[1:]:
            torch.testing.assert_close(other[row, start:end], hidden[0][row, start:end], atol=1e-4, rtol=1e-3)


@CASES
def test_switched_off_there_are_no_virtual_tokens(make, tiny, name, settings):
    model, batch = make(name, **settings), batch_of([TEXTS[0], TEXTS[1]])
    base = load_model(ModelSection(name=str(tiny("llama")), dtype="float32", attention="sdpa"))
    with torch.no_grad(), adapters_off(model):
        assert torch.equal(model.hidden(batch), base.hidden(batch))
    with torch.no_grad():
        assert not torch.allclose(model.hidden(batch), base.hidden(batch), atol=1e-2)


@CASES
@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_what_trains_gets_a_gradient_and_nothing_else(make, name, settings, storage):
    model, batch = make(name, storage=storage, **settings), batch_of([TEXTS[0], TEXTS[1]])
    model.train()
    model.hidden(batch).square().sum().backward()
    infos = parameter_infos(model)
    for info in infos:
        assert info.param.grad is not None and info.param.grad.abs().sum() > 0, info.name
    known = {id(info.param) for info in infos}
    assert not [key for key, p in model.named_parameters() if p.grad is not None and id(p) not in known]


@CASES
def test_gradients_survive_recomputed_activations(make, name, settings):
    batch, gradients = batch_of([TEXTS[0], TEXTS[1]]), []
    for recomputed in (False, True):
        model = make(name, **settings).train()
        if recomputed:
            model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.hidden(batch).square().mean().backward()
        gradients.append([info.param.grad for info in parameter_infos(model)])
    torch.testing.assert_close(*gradients)


@CASES
def test_the_declared_count_is_the_counted_one(make, name, settings):
    model = make(name, **settings)
    for _, module in adapted(model.hf):
        counted = sum(p.numel() for p in module.adapter.parameters() if p.requires_grad)
        assert type(module.adapter).count(module.adapter.config, module.adapter.site) == counted


@CASES
def test_a_checkpoint_gives_the_function_back(make, name, settings):
    one, two, batch = make(name, **settings), make(name, **settings), batch_of([TEXTS[0]])
    with torch.no_grad():
        for info in parameter_infos(two):
            info.param.zero_()
        load_trained_tensors(two, {key: t.clone() for key, t in trained_tensors(one).items()})
        assert torch.equal(one.hidden(batch), two.hidden(batch))


@CASES
def test_a_step_from_the_cache_goes_on_behind_the_virtual_tokens(make, name, settings):
    """As generation does it: prompt first, then a token at a time."""
    model, ids = make(name, **settings), TEXTS[0]
    with torch.no_grad():
        whole = model.hf(input_ids=torch.tensor([[*virtual_ids(TOKENS), *ids]]), use_cache=False).logits
        first = model.hf(input_ids=torch.tensor([[*virtual_ids(TOKENS), *ids[:-1]]]), use_cache=True)
        last = model.hf(input_ids=torch.tensor([ids[-1:]]), past_key_values=first.past_key_values).logits
    torch.testing.assert_close(last[0, -1], whole[0, -1], atol=1e-4, rtol=1e-3)


def test_a_widened_batch_has_the_virtual_tokens_before_every_document_and_narrows_to_what_it_was():
    batch = batch_of([TEXTS[0], TEXTS[1]], [TEXTS[2]])
    wide = widen(batch, 2)
    assert wide.batch.input_ids.tolist() == [
        [-1, -2, 5, 6, 7, 8, 9, -1, -2, 10, 11, 12],
        [-1, -2, 13, 14, 15, 16, 0, 0, 0, 0, 0, 0],
    ]
    assert wide.batch.documents == ((0, 0, 7), (0, 7, 12), (1, 0, 6))
    assert wide.batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    hidden = wide.batch.input_ids[..., None].float()
    narrow = wide.narrow(hidden)[..., 0]
    for row, start, end in batch.documents:
        assert narrow[row, start:end].tolist() == batch.input_ids[row, start:end].tolist()


def test_an_unknown_kind_of_site_is_refused_by_name(tiny):
    model = load_model(ModelSection(name=str(tiny("llama")), dtype="float32", attention="sdpa"))
    with pytest.raises(ValueError, match="blocks is no kind of site"):
        sites_of(model, ("blocks",))


def test_a_model_without_such_attentions_is_refused(tiny):
    model = load_model(ModelSection(name=str(tiny("gpt2")), dtype="float32", attention="sdpa"))
    with pytest.raises(ValueError, match="no attention with layers k_proj and v_proj"):
        sites_of(model, ("attention",))


@ALL
def test_a_copy_of_the_model_has_prompts_of_its_own(make, name):
    model, batch = make(name), batch_of([TEXTS[0]])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model.hidden(batch)
        for info in parameter_infos(twin):
            info.param.zero_()
        assert torch.equal(model.hidden(batch), before)
