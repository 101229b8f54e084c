"""New tokens: their rows train alone, as rows of whole matrices would, and everything that is written knows them."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrft.build import adapt as build
from lrft.build.adapt import adapt
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapters_off
from lrft.core.batch import Batch
from lrft.data.seam import token_ids
from lrft.export.merge import merge_into
from lrft.export.peft_format import adapter_files
from lrft.export.write import write_adapter_folder
from lrft.model import asked
from lrft.model.described import build_skeleton
from lrft.model.load import load_model
from lrft.model.new_rows import NewRows
from lrft.model.new_tokens import take_in
from lrft.model.tokenizer import load_tokenizer
from lrft.model.trained import parameter_infos, trained_tensors
from lrft.ops.loss import linear_cross_entropy
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.model.test_stream import check_same
from tests.model.test_trained import recipe_of

FEW = ["<|call|>", "<|result|>"]  # the tiny models have 8 rows more than tokens
MANY = [f"<|mark {k}|>" for k in range(12)]
FAMILIES = [("llama", True), ("llama", False), ("gpt2", True), ("gemma3_text", True), ("phi3", False)]


def with_tokens(folder, texts, dtype="float32", adapter="lora", quantization="none", **more) -> Recipe:
    section = {"name": str(folder), "dtype": dtype, "add_tokens": texts, **more}
    return recipe_of(folder, "adapter", adapter, quantization, model=section)


def batch_of(model, texts):
    """Text with every new token in it, and what is to be predicted of it."""
    new = range(model.new_rows.first, model.new_rows.first + len(texts))
    ids = torch.tensor([[5, *new, 7, new[0], 9, 11]])
    length = ids.shape[1]
    none = torch.empty(0, dtype=torch.long)
    return Batch(ids, torch.arange(length)[None], ((0, 0, length),), none, none)


def moved(recipe):
    """The adapted model, everything that trains moved by noise."""
    model = adapt(recipe).model
    torch.manual_seed(3)
    with torch.no_grad():
        for info in parameter_infos(model):
            info.param.add_(0.05 * torch.randn_like(info.param))
    return model.eval()


def loss_of(model, batch):
    rows = model.hidden(batch)[0, :-1]
    return linear_cross_entropy(rows, model.head, batch.input_ids[0, 1:])


@pytest.mark.parametrize("texts", [FEW, MANY], ids=["in spare rows", "beyond the matrix"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_logits_loss_and_gradients_are_those_of_whole_matrices(tiny, family, tied, texts):
    model = moved(with_tokens(tiny(family, tied=tied), texts))
    rows, batch = model.new_rows, batch_of(model, texts)
    logits, loss = model(batch), loss_of(model, batch)
    loss.backward()
    hf, end = model.hf, rows.first + rows.count
    assert (hf.get_output_embeddings().weight is hf.get_input_embeddings().weight) == tied
    assert [name for name, _ in rows.named_parameters()] == (["input"] if tied else ["input", "output"])
    assert hf.get_input_embeddings().weight.grad is None
    take_in(model, rows)
    whole = {id(m.weight): m.weight for m in (hf.get_input_embeddings(), hf.get_output_embeddings())}.values()
    for weight in whole:
        weight.requires_grad_(True)
    dense = model(batch)
    expected = F.cross_entropy(dense[0, :-1].float(), batch.input_ids[0, 1:], reduction="sum")
    expected.backward()
    torch.testing.assert_close(logits, dense)
    torch.testing.assert_close(loss, expected)
    for own, weight in zip(rows.parameters(), whole, strict=True):
        torch.testing.assert_close(own.grad, weight.grad[rows.first : end], atol=1e-5, rtol=1e-4)
        assert own.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_row_starts_as_the_mean_of_the_pieces_of_its_text(tiny, tied):
    recipe = with_tokens(tiny("llama", tied=tied), MANY)
    model, base = (
        load_model(recipe.model),
        load_model(ModelSection(name=str(tiny("llama", tied=tied)), dtype="float32")),
    )
    plain, _ = load_tokenizer(ModelSection(name=str(tiny("llama", tied=tied))))
    pieces = [token_ids(plain, text) for text in MANY]
    for own, module in zip(
        model.new_rows.parameters(),
        (base.hf.get_input_embeddings(), base.hf.get_output_embeddings()),
        strict=False,
    ):
        assert torch.equal(own, torch.stack([module.weight[ids].mean(0) for ids in pieces]))
    old = base.hf.get_input_embeddings().weight[: model.new_rows.first]
    assert torch.equal(model.hf.get_input_embeddings().weight[: len(old)], old)


def test_without_the_adapter_the_rows_are_what_they_began_as(tiny):
    model = moved(with_tokens(tiny(), FEW))
    batch, fresh = batch_of(model, FEW), load_model(with_tokens(tiny(), FEW).model)
    with adapters_off(model):
        torch.testing.assert_close(model(batch), fresh(batch))
    assert not torch.allclose(model(batch), fresh(batch), atol=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_read_one_by_one_give_the_model_that_is_read_whole(tiny, monkeypatch, tied):
    recipe = with_tokens(tiny("llama", tied=tied), MANY, quantization="nf4_reference")
    monkeypatch.setattr(asked, "SMALL", 0)
    streamed = adapt(recipe)
    with monkeypatch.context() as patch:
        patch.setattr(build, "gains_by_streaming", lambda *_: False)
        whole = adapt(recipe)
    assert streamed.notes == whole.notes
    assert (
        streamed.model.fingerprint
        == load_model(ModelSection(name=recipe.model.name, dtype="float32")).fingerprint
    )
    check_same(whole, streamed)
    for one, other in zip(
        whole.model.new_rows.parameters(), streamed.model.new_rows.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_model_that_reads_its_embedding_in_another_way_is_refused(tiny, monkeypatch):
    class Doubled(NewRows):
        def embed(self, ids, embedded):
            return 2 * super().embed(ids, embedded)

    monkeypatch.setattr("lrft.model.new_tokens.NewRows", Doubled)
    with pytest.raises(RecipeError, match="reads its embedding in a way"):
        load_model(with_tokens(tiny(), FEW).model)


def test_the_rows_are_all_that_a_checkpoint_has_of_the_vocabulary(tiny):
    model = moved(with_tokens(tiny("llama", tied=False), FEW, dtype="bfloat16"))
    held = {name: tensor for name, tensor in trained_tensors(model).items() if ".adapter" not in name}
    tokens = {name: tensor for name, tensor in held.items() if name.startswith("tokens.")}
    assert tokens.keys() == {"tokens.input", "tokens.output"}
    assert all(t.dtype == torch.float32 and t.shape == (2, 64) for t in tokens.values())
    assert all(tensor.numel() < 512 * 64 for tensor in held.values())
    infos = {info.name: info.role for info in parameter_infos(model)}
    assert (infos["tokens.input"], infos["tokens.output"]) == ("embedding", "head")


def test_the_vocabulary_is_padded_with_rows_of_the_mean(tiny):
    recipe = with_tokens(tiny(), MANY, resize=64)
    model, plain = load_model(recipe.model), load_model(with_tokens(tiny(), MANY).model)
    weight, before = model.hf.get_input_embeddings().weight, plain.hf.get_input_embeddings().weight
    assert weight.shape[0] == 576 == model.hf.config.vocab_size and before.shape[0] == 524
    assert torch.equal(weight[:524], before)
    whole = load_model(ModelSection(name=str(tiny()), dtype="float32")).hf.get_input_embeddings().weight
    assert torch.equal(weight[524:], whole.mean(0).expand(52, -1))


def test_a_model_without_weights_plans_with_as_many_parameters(tiny):
    recipe = with_tokens(tiny("llama", tied=False), MANY)
    meta = plan_without_weights(recipe, load_model(recipe.model, meta=True)).model
    assert [p.shape for p in meta.new_rows.parameters()] == [(12, 64), (12, 64)]
    assert meta.hf.config.vocab_size == 524
    for tied, rows in ((True, 1), (False, 2)):
        planned = build_skeleton(with_tokens(tiny("llama", tied=tied), MANY).model)[0]
        counts = [info.param.numel() for info in parameter_infos(planned)]
        assert counts == [12 * 64] * rows


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gemma3_text", True)])
@pytest.mark.parametrize("texts", [FEW, MANY], ids=["in spare rows", "beyond the matrix"])
def test_peft_computes_our_logits(tiny, tmp_path, family, tied, texts):
    from peft import PeftModel

    recipe = with_tokens(tiny(family, tied=tied), texts)
    model, tokenizer = moved(recipe), load_tokenizer(recipe.model)[0]
    write_adapter_folder(tmp_path / "a", adapter_files(model, recipe, {"step": 1}), tokenizer)
    base = AutoModelForCausalLM.from_pretrained(
        tiny(family, tied=tied), dtype="float32", attn_implementation="eager"
    )
    if texts is MANY:
        base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path / "a")), mean_resizing=False)
    peft = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    batch = batch_of(model, texts)
    with torch.no_grad():
        torch.testing.assert_close(peft(input_ids=batch.input_ids).logits, model(batch), atol=1e-4, rtol=1e-4)
    assert f"fewer rows than {512 + len(texts)}" in (tmp_path / "a" / "README.md").read_text()
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["trainable_token_indices"]
    assert set(said) == ({"embed_tokens"} if tied else {"embed_tokens", "lm_head"})


def test_what_peft_cannot_say_goes_under_our_own_names(tiny):
    recipe = with_tokens(tiny(), FEW, adapter="vera")
    files = adapter_files(moved(recipe), recipe, {"step": 1})
    assert "adapter.safetensors" in files and "adapter_config.json" not in files


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_matrices_hold_the_rows(tiny, tied, dtype):
    recipe = with_tokens(tiny("llama", tied=tied), MANY, dtype=dtype)
    model, dense = moved(recipe), load_model(recipe.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    assert dense.new_rows is None
    batch = batch_of(model, MANY)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(dense(batch).float(), model(batch).float(), **close)


def test_a_new_token_ends_answers_where_the_template_says_so(tiny):
    section = ModelSection(name=str(tiny()), add_tokens={"special": ["<|eot_id|>"]})
    tokenizer, stops = load_tokenizer(section, template="llama3")
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == 512 == tokenizer.eos_token_id
    assert 512 in stops
