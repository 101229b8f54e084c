"""A run with new tokens: trained, cut off and resumed, merged, exported; and what it cannot stand beside."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrft.api.exporting.export import export
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.data.seam import token_ids
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError, UsageError
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken

OVERRIDES = [
    "model.add_tokens={special: ['<|call|>'], plain: ['\"item\": ']}",
    "train.keep_last=9",
    "eval.tasks=[]",
]


@pytest.fixture(scope="module")
def run(tiny_recipe, tmp_path_factory):
    """A finished run with a token of each kind, and its recipe."""
    folder = tmp_path_factory.mktemp("tokens")
    loaded = load_recipe(tiny_recipe(folder), [*OVERRIDES, "model.resize=16"])
    train(loaded, folder / "whole", resume=False)
    return loaded, folder / "whole"


def test_a_run_that_was_cut_off_goes_on_unbroken(run, tmp_path):
    loaded, whole = run
    goes_on_unbroken(loaded, whole, 3, tmp_path / "broken")


def test_transformers_alone_loads_the_merged_model_with_the_logits_of_the_run(run, tmp_path, short_answers):
    _, whole = run
    merge(whole, tmp_path / "merged", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype="float32", attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    _, text, adaptation = open_run(RunFolder(whole))
    rows = adaptation.model.new_rows
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.vocab_size == plain.model.embed_tokens.num_embeddings == 528
    assert tokenizer.convert_tokens_to_ids(['"item": ', "<|call|>"]) == [rows.first, rows.first + 1]
    ids = tokenizer('a<|call|>b"item": ', add_special_tokens=False).input_ids
    assert ids == token_ids(text.tokenizer, 'a<|call|>b"item": ')
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'ab"item": '
    assert torch.equal(plain.model.embed_tokens.weight[rows.first : rows.first + 2], rows.input)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("model.add_tokens=[]", "holds no text"),
        ("model.add_tokens=[a,a]", "names 'a' twice"),
        ("adapter=null trainable=['*norm.weight']", "adapter: null"),
        ("adapter=sltrain", "adapter: sltrain"),
        ("adapter=prompt_tuning", "adapter on"),
        ("model.compile=true", "model.compile"),
        ("restart={method:relora,every:3}", "restart"),
        ("train.shard_base=true", "train.shard_base"),
        ("trainable=['*embed_tokens*']", "the whole embedding would train"),
        ("model.add_tokens=['<|im_end|>']", "already"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused_by_name(tiny_recipe, tmp_path, overrides, reason):
    with pytest.raises(RecipeError, match=reason):
        adapt(load_recipe(tiny_recipe(tmp_path), [*OVERRIDES, *overrides.split()]).recipe)


def test_padding_alone_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(RecipeError, match="pads the rows of new tokens"):
        load_recipe(tiny_recipe(tmp_path), ["model.resize=64"])


def test_another_training_cannot_begin_with_it_and_is_told_what_to_do(run, tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe(tmp_path), [f"model.adapter={run[1]}"]).recipe
    with pytest.raises(RecipeError, match="merge it"):
        adapt(recipe)


def test_plain_adapters_have_no_rows_for_new_tokens(run, tmp_path):
    with pytest.raises(UsageError, match="no rows for new tokens"):
        export(run[1], "lora", tmp_path / "out")


def test_a_token_that_no_row_has_is_told(run):
    recipe = load_recipe(run[1] / "recipe.yaml").recipe
    notes = adapt(recipe, text=read_text(recipe)).notes
    assert [note for note in notes if "add_tokens" in note] == [
        "model.add_tokens: no training row has '<|call|>', so nothing is learnt but not to write it"
    ]


def test_rows_of_tokens_that_the_first_steps_have_not_need_no_gradient(tiny, tiny_recipe, tmp_path):
    overrides = [
        "model.add_tokens=['<|one|>']",
        f"model.name={tiny('llama', tied=False)}",
        "train.max_steps=3",
    ]
    loaded = load_recipe(tiny_recipe(tmp_path), [*overrides, "eval.tasks=[]"])
    train(loaded, tmp_path / "run", resume=False)
    rows = open_run(RunFolder(tmp_path / "run"))[2].model.new_rows
    start = load_model(loaded.recipe.model).new_rows
    assert (rows.input - start.input).abs().max() < 1e-3 < (rows.output - start.output).abs().max()
