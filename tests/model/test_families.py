"""Every model family: hidden states, sites, packing, adapters and merging, on tiny random models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrft.core.batch import Batch
from lrft.export.merge import merge_into
from lrft.export.write import write_merged
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.direct import find_direct
from lrft.model.load import load_model
from lrft.model.matrices import matrices
from lrft.model.sites import choose, linear_sites
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import parameter_infos
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS
from lrft.registry.errors import RecipeError

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"]
VARIANTS = [("llama", False, True), ("qwen2", False, False), ("gpt2", True, False), ("gemma2", True, True)]


def batch_of(rows: list[list[list[int]]], length: int) -> Batch:
    """Rows of documents as one batch, every position but a document's last supervised."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    documents, supervised, targets = [], [], []
    for row, texts in enumerate(rows):
        at = 0
        for text in texts:
            end = at + len(text)
            ids[row, at:end] = torch.tensor(text)
            positions[row, at:end] = torch.arange(len(text))
            documents.append((row, at, end))
            supervised += [row * length + i for i in range(at, end - 1)]
            targets += text[1:]
            at = end
        positions[row, at:] = torch.arange(length - at)
    return Batch(ids, positions, tuple(documents), torch.tensor(supervised), torch.tensor(targets))


def load(tiny, family, attention="segmented", **variant):
    section = ModelSection(name=str(tiny(family, **variant)), dtype="float32", attention=attention)
    return load_model(section)


DOCUMENTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18]]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "segmented"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_the_hidden_states_of_single_ones(tiny, family, attention):
    if (family, attention) == ("gemma2", "sdpa"):  # transformers offers none; refusing is the contract then
        with pytest.raises(RecipeError, match=r"model\.attention.*write segmented or eager"):
            load(tiny, family, attention)
        return
    model = load(tiny, family, attention)
    packed = model.hidden(batch_of([DOCUMENTS], 17))
    at = 0
    for text in DOCUMENTS:
        ids = torch.tensor([text])
        model.hf.set_attn_implementation("eager")
        alone = model.hf.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        model.hf.set_attn_implementation(attention)
        torch.testing.assert_close(packed[0, at : at + len(text)], alone, atol=2e-5, rtol=1e-4)
        at += len(text)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "segmented"])
def test_a_sliding_window_is_kept_inside_packed_documents(tiny, attention, tmp_path):
    model = load(tiny, "mistral", attention)
    model.hf.config.sliding_window = 3
    packed = model.hidden(batch_of([DOCUMENTS], 14))
    model.hf.set_attn_implementation("eager")
    alone = model.hf.base_model(input_ids=torch.tensor([DOCUMENTS[0]]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(packed[0, :6], alone, atol=2e-5, rtol=1e-4)
    model.hf.config.sliding_window = None
    assert (
        model.hf.base_model(input_ids=torch.tensor([DOCUMENTS[0]])).last_hidden_state[0] - alone
    ).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_segmented_attention_are_those_of_eager(tiny, family):
    batch = batch_of([DOCUMENTS, [[20, 21, 22, 23]]], 16)
    grads = {}
    for attention in ("segmented", "eager"):
        model = load(tiny, family, attention)
        model.hf.requires_grad_(True)
        hidden = model.hidden(batch).reshape(-1, model.hf.config.get_text_config().hidden_size)
        hidden[batch.supervised].square().sum().backward()
        grads[attention] = {n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None}
    for name, grad in grads["eager"].items():
        torch.testing.assert_close(
            grads["segmented"][name], grad, atol=1e-3, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("family", "tied", "bias"), [(f, True, False) for f in FAMILIES] + VARIANTS)
@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
def test_a_merged_model_loaded_by_plain_transformers_is_the_adapted_one(
    tiny, tmp_path, family, tied, bias, storage
):
    from transformers import AutoModelForCausalLM

    model = load(tiny, family, tied=tied, bias=bias)
    sites, _ = choose(linear_sites(model), "all-linear")
    config = ADAPTERS.declared("lora").config(method="lora", rank=4)
    init = INITS.get("default")(INITS.declared("default").config())
    quantizer = QUANTIZERS.get(storage)
    attach(model, make_plan(sites, config), SiteBuilder(quantizer, ADAPTERS.get("lora"), config, init))
    for info in parameter_infos(model):
        torch.nn.init.normal_(info.param, std=0.05)
    batch = batch_of([[[5, 6, 7, 8, 9, 10]]], 6)
    with torch.no_grad():
        expected = model(batch)
    dense = load(tiny, family, tied=tied, bias=bias)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    tokenizer, _ = load_tokenizer(ModelSection(name=str(tiny(family, tied=tied, bias=bias))))
    write_merged(dense, tokenizer, tmp_path / "merged", "1GB")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        got = plain(input_ids=batch.input_ids).logits
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_map_but_the_head(tiny, family):
    model = load(tiny, family)
    sites = linear_sites(model)
    assert all("lm_head" not in name for name in sites)
    per_layer = len([n for n in sites if ".0." in n])
    assert per_layer == {"gpt2": 4, "phi3": 4}.get(family, 7)
    assert len(sites) == 2 * per_layer


def test_the_pad_token_is_never_a_stop_token(tiny):
    for family in FAMILIES:
        tokenizer, stops = load_tokenizer(ModelSection(name=str(tiny(family))))
        assert tokenizer.pad_token_id not in stops


@pytest.mark.parametrize(
    ("family", "unreached", "named"),
    [
        ("llama", 0, ""),
        ("gpt2", 0, ""),
        ("mixtral", 0.89, "mlp.experts.gate_up_proj"),
        ("gpt_oss", 0.89, "experts"),
    ],
)
def test_what_no_adapter_can_reach_is_counted_and_named(tiny, family, unreached, named):
    held = matrices(load(tiny, family, "auto"))
    assert held.unreached == pytest.approx(unreached, abs=0.02)
    assert named in held.sentence()
    assert bool(held.sentence()) == bool(unreached)


def test_the_share_of_a_target_is_of_all_matrices(tiny):
    model = load(tiny, "mixtral")
    held = matrices(model)
    _, (row,) = choose(linear_sites(model), "all-linear", held.total)
    assert row.share == pytest.approx(held.linear / held.total)
    assert row.share < 0.2


@pytest.mark.parametrize("family", ["bamba", "falcon_h1", "jamba", "mamba2", "llama"])
def test_without_weights_the_layers_that_nothing_can_stand_in_for_are_the_same_ones(tiny, family):
    """Code of state-space layers asks whether a token is masked before it reads the weights of some."""
    hf = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(hf.config)
    assert find_direct(bare) == find_direct(hf)
    assert bool(find_direct(hf)) == (family != "llama")
