"""A tokenizer with one special token, as GPT-2's: what is written pads with no token that a text may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import lrft
from lrft.api.merging.merge import merge
from lrft.recipe.load import load_recipe
from lrft.training.folder import RunFolder
from scripts.make_tiny_model import train_bpe

END = "<|endoftext|>"
RECIPE = """
model: {{name: {model}, dtype: float32{model_more}}}
adapter: {{method: lora, rank: 8, alpha: 32}}
{more}
train: {{max_steps: 60, batch_size: 2, max_length: 64, device: cpu, packing: false}}
optimizer: {{method: adamw, lr: 0.02}}
schedule: constant
"""
ANSWERS = {"say a:": " b", "say more!:": " b, and then a word more"}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """The tiny model with a tokenizer that has nothing to pad with; its first id is an exclamation mark."""
    folder = tmp_path_factory.mktemp("without_pad")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(["say a word more, and then b!"] * 9, 300, []), eos_token=END
    )
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny())
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, None
        config.bos_token_id = None
    model.save_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens([0]) == ["!"] and tokenizer.all_special_tokens == [END]
    return folder


def finished(folder: Path, base: Path, rows: list[dict], more: str, model_more: str = "") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=base, more=more, model_more=model_more))
    lrft.train(load_recipe(folder / "recipe.yaml"), folder / "run", resume=False)
    merge(RunFolder(folder / "run"), folder / "merged", None)
    return folder / "merged"


@pytest.fixture(scope="module")
def merged(base, tmp_path_factory) -> Path:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ANSWERS.items()]
    more = "data: {train: rows.jsonl, eval: rows.jsonl, format: prompt_completion}"
    return finished(tmp_path_factory.mktemp("merged"), base, rows, more)


def test_answers_of_a_batch_end_where_they_end(merged):
    """transformers fills up the shorter answers with the pad, which decoding has to leave out."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    given = tokenizer(list(ANSWERS), return_tensors="pt", padding=True)
    made = model.generate(**given, max_new_tokens=32, do_sample=False)[:, given["input_ids"].shape[1] :]
    short, long = tokenizer.batch_decode(made, skip_special_tokens=True)
    assert short == ANSWERS["say a:"] and len(long) > len(short)


def test_a_prompt_is_read_whole_where_no_mask_is_given(merged):
    """transformers takes what is like the pad for padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    given = tokenizer(["say more!!!! a!:"], return_tensors="pt")
    settings = {
        "max_new_tokens": 1,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    masked = model.generate(**given, **settings).logits[0]
    assert torch.equal(model.generate(given["input_ids"], **settings).logits[0], masked)


def test_the_base_model_of_others_keeps_its_embedding_without_a_row_for_padding(merged, base):
    held = [json.loads((folder / "config.json").read_text()).get("pad_token_id") for folder in (merged, base)]
    assert held == [None, None]


def test_a_classifier_reads_the_last_token_also_where_that_is_the_first_of_the_vocabulary(base, tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("say a!", "b"), ("say more", "a"))]
    more = (
        "objective: classify\ndata: {train: rows.jsonl, eval: rows.jsonl, format: classify}\n"
        "eval: {tasks: [classification]}\nexport: {fidelity_rows: 1}"
    )
    folder = finished(tmp_path, base, rows[::-1], more, ", head: [a, b]")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["text"] for row in rows]
    with torch.no_grad():
        given = tokenizer(texts, return_tensors="pt", padding=True)
        found = model(**given).logits.argmax(-1).tolist()
    assert [model.config.id2label[one] for one in found] == ["b", "a"]
