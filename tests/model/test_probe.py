"""What a model is asked before it trains: who sees whom, and whether its numbers are transformers' own."""

from __future__ import annotations

import pytest
import torch

from lrft.model import attention
from lrft.model.asked import reference
from lrft.model.attach import attach
from lrft.model.backend import check_runs, settle_attention, why_padded
from lrft.model.batching import find_batching
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.probe import FUTURE, PACKED, VALUES, batch_of, find_fault
from lrft.model.sites import choose, linear_sites
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import RecipeError

STATEFUL = [
    ("lfm2", "float32"),
    ("lfm2", "bfloat16"),
    ("mamba", "float32"),
    ("jamba", "float32"),
    ("qwen3_next", "bfloat16"),
]


def section(tiny, family, **more) -> ModelSection:
    return ModelSection(name=str(tiny(family)), **{"dtype": "float32", **more})


def load(tiny, family, **more):
    return load_model(section(tiny, family, **more))


def settle(tiny, family, packing=True, **more):
    chosen = section(tiny, family, **more)
    model = load_model(chosen)
    return model, settle_attention(model, chosen, "cpu", packing).note


@pytest.mark.parametrize(("family", "dtype"), STATEFUL)
def test_packed_rows_of_layers_that_carry_a_state_are_refused_with_the_remedy(tiny, family, dtype):
    with pytest.raises(
        RecipeError, match=r"train.packing: .*packed into one row see each other; write false"
    ):
        settle(tiny, family, dtype=dtype)
    settle(tiny, family, packing=False, dtype=dtype)


def test_what_transformers_cannot_run_in_a_precision_is_refused_by_its_key(tiny):
    with pytest.raises(
        RecipeError, match=r"model.dtype: transformers cannot run MambaForCausalLM .*; write float32"
    ):
        load(tiny, "mamba", dtype="bfloat16")


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon", "rwkv"])
def test_families_that_count_positions_from_the_row_are_not_packed(tiny, family):
    with pytest.raises(RecipeError, match=r"train.packing: .*write false"):
        settle(tiny, family)
    model, note = settle(tiny, family, packing=False)
    assert model.attention == "eager"
    assert "segmented" in note


@pytest.mark.parametrize(("family", "packs"), [("llama", True), ("lfm2", False), ("bloom", False)])
def test_unless_the_recipe_says_so_rows_are_packed_where_the_model_keeps_them_apart(tiny, family, packs):
    chosen = section(tiny, family)
    found = settle_attention(load_model(chosen), chosen, "cpu", None)
    assert found.packing == packs
    assert found.note.startswith("train.packing: false (" if not packs else "")
    assert found.told != packs


@pytest.mark.parametrize(
    ("family", "attention", "why"),
    [
        ("llama", "segmented", ""),
        ("llama", "sdpa", "sdpa attention computes every pair of tokens of a row"),
        ("bloom", "eager", "eager attention computes every pair of tokens of a row"),
        ("lfm2", "segmented", "Lfm2ForCausalLM: documents packed into one row see each other"),
        ("mamba", "segmented", "MambaForCausalLM: documents packed into one row see each other"),
    ],
)
def test_rows_are_joined_where_the_model_was_seen_to_keep_documents_apart(tiny, family, attention, why):
    chosen = section(tiny, family, attention=attention)
    model = load_model(chosen)
    assert settle_attention(model, chosen, "cpu", False).note == ""
    assert why_padded(model, chosen, packing=False) == why


def test_a_backend_that_fails_names_one_that_works(tiny):
    with pytest.raises(RecipeError, match=r"model.attention: OPT.* with sdpa attention: .*; write segmented"):
        settle(tiny, "opt", attention="sdpa")
    with pytest.raises(RecipeError, match=r"model.attention: .*write sdpa"):
        settle(tiny, "nemotron", attention="segmented")


def test_the_next_backend_is_taken_where_the_choice_is_ours(tiny):
    model, note = settle(tiny, "nemotron")
    assert model.attention == "sdpa"
    assert note.startswith("model.attention: sdpa (segmented: ")


def test_a_model_that_looks_ahead_is_refused_outright(tiny):
    with pytest.raises(RecipeError, match="no causal language model: later tokens change"):
        load(tiny, "bert")


@pytest.mark.parametrize("damage", ["future", "packed", "values"])
def test_each_kind_of_wrong_attention_is_found(tiny, damage, monkeypatch):
    model = load(tiny, "llama")
    whole = attention.segmented_attention

    def wrong(module, query, key, value, mask, **kwargs):
        documents = kwargs["documents"]
        if damage == "packed":
            kwargs["documents"] = tuple({r: (r, 0, query.shape[2]) for r, _, _ in documents}.values())
        if damage == "values":
            kwargs["scaling"] = 2 * kwargs["scaling"]
        out, _ = whole(module, query, key, value, mask, **kwargs)
        if damage == "future":
            out = out + out.mean(1, keepdim=True)
        return out, None

    from transformers import AttentionInterface

    AttentionInterface.register("segmented", wrong)
    try:
        fault = find_fault(model, packing=True)
    finally:
        AttentionInterface.register("segmented", whole)
    assert fault is not None
    assert fault.kind == {"future": FUTURE, "packed": PACKED, "values": VALUES}[damage]


@pytest.mark.parametrize("family", ["cohere", "granite", "minicpm3", "recurrent_gemma"])
def test_scales_and_caps_of_a_head_are_found(tiny, family):
    model = load(tiny, family)
    ids = [5, 6, 7, 8, 9]
    torch.testing.assert_close(
        model(batch_of([[ids]])), reference(model, torch.tensor([ids])), atol=1e-5, rtol=1e-4
    )
    assert (model.scale, model.softcap) != (1.0, None)


def test_sinks_take_their_share_and_get_their_gradient(tiny):
    ids, grads = [list(range(5, 17)), list(range(20, 26))], {}
    for backend in ("segmented", "eager"):
        model = load(tiny, "gpt_oss", attention=backend)
        model.hf.requires_grad_(True)
        for name, parameter in model.hf.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        batch = batch_of([[ids[0]], [ids[1]]])
        hidden = model.hidden(batch)
        (hidden[0].square().sum() + hidden[1, : len(ids[1])].square().sum()).backward()
        grads[backend] = {n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None}
    assert any(name.endswith("sinks") and grad.abs().max() > 1e-4 for name, grad in grads["eager"].items())
    for name, grad in grads["eager"].items():
        torch.testing.assert_close(
            grads["segmented"][name], grad, atol=2e-3, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_attention_in_chunks_is_not_taken_for_a_whole_row():
    attention.register()
    with pytest.raises(attention.Unsupported, match="a mask of 8 tokens"), attention.listening():
        attention._no_mask(local_size=8)


@pytest.mark.parametrize(
    ("family", "batching"), [("llama", "padded"), ("opt", "padded"), ("lfm2", "padded"), ("rwkv", "single")]
)
def test_how_prompts_may_be_batched_is_tried_and_not_presumed(tiny, family, batching):
    model = load(tiny, family)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    assert find_batching(model) == batching


def test_asking_changes_nothing_of_the_model(tiny):
    model = load(tiny, "gpt2", attention="sdpa")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_fault(model, packing=True)
    find_batching(model)
    assert model.training
    assert model.attention == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "direct"),
    [
        ("llama", set()),
        ("falcon", set()),
        ("mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("bamba", {"out_proj"}),
        ("llama4_text", {"router"}),
    ],
)
def test_layers_that_nothing_can_stand_in_for_are_found_and_left_alone(tiny, family, direct):
    model = load(tiny, family)
    inner = {name for name in model.direct if not name.endswith("lm_head")}
    assert {name.rpartition(".")[2] for name in inner} == direct
    assert not inner & linear_sites(model).keys()


def test_a_target_that_no_adapter_can_stand_in_for_is_refused_with_the_reason(tiny):
    model = load(tiny, "mamba")
    with pytest.raises(
        RecipeError, match=r"adapter.targets: pattern 'out_proj' names layers whose weight the model's"
    ):
        choose(linear_sites(model), ["out_proj"], direct=model.direct)


def test_code_that_cannot_run_with_other_layers_is_one_sentence(tiny):
    model = load(tiny, "mamba")
    model.direct = frozenset()
    attach(model, {}, SiteBuilder(QUANTIZERS.get("none")))
    with pytest.raises(
        RecipeError, match=r"model.name: the code of MambaForCausalLM does not run with layers in place"
    ):
        check_runs(model)


@pytest.mark.parametrize("storage", ["none", "nf4_reference", "int8_reference"])
def test_a_stored_model_in_bfloat16_is_asked_in_its_own_precision(tiny, storage):
    model = load(tiny, "llama", dtype="bfloat16")
    attach(model, {}, SiteBuilder(QUANTIZERS.get(storage)))
    assert find_batching(model) == "padded"
    assert find_fault(model, packing=True) is None


@torch.no_grad()
def test_a_small_capped_model_in_bfloat16_is_asked_with_its_cap(tiny):
    model = load(tiny, "gemma2", dtype="bfloat16")
    model.softcap = model.hf.config.final_logit_softcapping = 0.05
    assert find_fault(model, packing=True) is None


@torch.no_grad()
def test_a_stop_token_of_the_checkpoint_does_not_cut_the_trial(tiny):
    model = load(tiny, "llama")
    model.hf.generation_config.eos_token_id = list(range(model.hf.config.vocab_size))
    model.hf.generation_config.repetition_penalty = 3.0
    assert find_batching(model) == "padded"


@pytest.mark.parametrize(("broken", "batching"), [("padded", "equal"), ("cached", "uncached")])
def test_a_way_to_generate_that_fails_is_passed_over(tiny, monkeypatch, broken, batching):
    model = load(tiny, "llama")
    generate = model.hf.generate

    def faulty(**inputs):
        padded = not bool(inputs["attention_mask"].all())
        if padded or (broken == "cached" and inputs["generation_config"].use_cache):
            raise IndexError("list index out of range")
        return generate(**inputs)

    monkeypatch.setattr(model.hf, "generate", faulty)
    assert find_batching(model) == batching
