"""Prompts and prefixes beside PEFT's own, from recipe to adapter folder, and in generation."""

from __future__ import annotations

import json

import pytest
import torch

import lrft
from lrft.api.opening.open_run import open_run
from lrft.core.virtual import virtual_ids
from lrft.model.batching import stock_attention
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import NotMergeable, RecipeError
from lrft.training.folder import RunFolder

SMALL = ["data.train.limit=30", "data.eval.limit=4", "train.device=cpu", "train.packing=true"]
METHODS = pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """`trained(method, *overrides)` -> run folder of the method's smoke recipe on a tiny model."""
    made = {}

    def get(method, *overrides, family="llama"):
        key = (method, overrides, family)
        if key not in made:
            folder = tmp_path_factory.mktemp(method) / "run"
            recipe = f"recipes/smoke/{method}.yaml"
            chosen = [f"model.name={tiny(family)}", *SMALL, *overrides]
            lrft.train(recipe, folder, overrides=chosen)
            made[key] = folder
        return made[key]

    return get


@METHODS
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_peft_computes_our_logits(trained, tiny, method, family):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = trained(method, family=family)
    base = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    _, _, adaptation = open_run(RunFolder(folder))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    n = adaptation.model.virtual
    with torch.no_grad(), stock_attention(adaptation.model.hf):
        wide = torch.cat([torch.tensor([virtual_ids(n)]), ids], dim=1)
        ours = adaptation.model.hf(input_ids=wide, use_cache=False).logits[:, n:]
        logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-3)


def test_a_prefix_of_a_model_with_other_layers_than_attention_has_no_form_in_peft(trained):
    folder = trained("prefix_tuning", "train.packing=false", family="lfm2")
    assert not (folder / "adapter" / "adapter_config.json").exists()
    _, _, adaptation = open_run(RunFolder(folder))
    ids = torch.tensor([[*virtual_ids(adaptation.model.virtual), 5, 6, 7]])
    with torch.no_grad(), stock_attention(adaptation.model.hf):
        assert adaptation.model.hf(input_ids=ids, use_cache=False).logits.isfinite().all()


@METHODS
def test_generation_starts_behind_the_virtual_tokens(trained, method):
    """The tokens of `lrft eval` are those of the most likely next one, asked for by hand."""
    from lrft.build.scoring import subject
    from lrft.evaluation.generate import generate

    recipe, text, adaptation = open_run(RunFolder(trained(method)))
    model, prompts = adaptation.model, [[5, 6, 7], [8, 9, 10, 11, 12]]
    found = generate(subject(recipe, text, model), prompts, 4, stop_ids=[])
    for prompt, new in zip(prompts, found, strict=True):
        ids = [*virtual_ids(model.virtual), *prompt]
        for token in new:
            with torch.no_grad(), stock_attention(model.hf):
                logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits
            assert int(logits[0, -1].argmax()) == token
            ids.append(token)


@METHODS
def test_the_baseline_is_the_bare_model(trained, tiny, method):
    scores = lrft.evaluate(trained(method), tasks=["loss"], baseline=True)
    bare = trained("lora", "optimizer.lr=1e-12")
    expected = lrft.evaluate(bare, tasks=["loss"])["adapter"]["loss"].metrics["loss"]
    assert scores["baseline"]["loss"].metrics["loss"] == pytest.approx(expected, rel=1e-5)


@METHODS
def test_it_cannot_be_merged_and_says_so(trained, method, tmp_path):
    with pytest.raises(NotMergeable, match=method):
        lrft.merge(trained(method), tmp_path / "model")


@METHODS
def test_packed_and_unpacked_rows_give_the_same_first_loss(trained, method):
    first = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (
            trained(method, "train.max_steps=1", "train.batch_size=1", "train.max_length=1000"),
            trained(
                method,
                "train.max_steps=1",
                "train.packing=false",
                "train.batch_size=30",
                "train.max_length=1000",
            ),
        )
    ]
    # One row of all examples, or all examples as rows of their own.
    assert first[0] == pytest.approx(first[1], rel=5e-2)


def test_positions_are_counted_with_the_virtual_tokens(trained):
    with pytest.raises(RecipeError, match=r"train\.max_length: .* with 600 virtual ones"):
        trained("prompt_tuning", "adapter.tokens=600", "train.max_length=1000")


def test_a_prompt_from_the_vocabulary_is_rows_of_the_embedding():
    cls = ADAPTERS.get("prompt_tuning")
    from lrft.core.params import Site

    embedding = torch.nn.Embedding(50, 8)
    made = cls(ADAPTERS.settings("prompt_tuning", tokens=4), Site("e", 50, 8, kind="embedding"))
    made.fit(embedding)
    assert all((embedding.weight == row).all(dim=1).any() for row in made.prompt)
