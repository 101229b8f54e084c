"""The merged folder and the adapter folder, as others read them: transformers alone, a server, the hub."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import lrft
from lrft.api.merging.merge import merge
from lrft.export import write
from lrft.export.card import adapter_card, merged_card, recipe_to_share
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import ToleranceError
from lrft.training.folder import RunFolder

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 4, alpha: 8}}
data:
  train: {{source: {train}, limit: 8}}
  eval: {{source: {test}, limit: 2}}
  format: {{method: prompt_completion, render: {render}}}
train: {{max_steps: {steps}, batch_size: 4, max_length: 160, device: cpu, packing: false}}
optimizer: {{method: adamw, lr: 0.02}}
schedule: constant
export: {{shard_size: 100KB}}
"""
OLD_STOP = 7
MERGED = {"onto": "original", "dtype": "float32", "rounding": None, "rows": 0, "rows_from": None}


def finished(
    folder: Path,
    model: Path,
    render: str = "chat",
    steps: int = 2,
    train: Path = DATA / "train.jsonl",
    test: Path = DATA / "test.jsonl",
) -> Path:
    """A run on `model` and its merged folder, beside one another in `folder`."""
    text = RECIPE.format(model=model, train=train, test=test, render=render, steps=steps)
    (folder / "recipe.yaml").write_text(text)
    lrft.train(load_recipe(folder / "recipe.yaml"), folder / "run", resume=False)
    merge(RunFolder(folder / "run"), folder / "merged", None)
    return folder / "merged"


def copied(tiny_folder: Path, folder: Path, config: dict, generation: dict | None) -> Path:
    """A checkpoint whose configs say something else."""
    shutil.copytree(tiny_folder, folder)
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, **config}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def stops(folder: Path, name: str) -> object:
    return json.loads((folder / name).read_text()).get("eos_token_id")


@pytest.fixture(scope="module")
def retargeted(tiny, tmp_path_factory) -> Path:
    """Folder of a finished run on a checkpoint whose configs name another stop token, and its merged model."""
    folder = tmp_path_factory.mktemp("retargeted")
    settings = {"eos_token_id": OLD_STOP, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.01}
    base = copied(tiny(), folder / "base", {"eos_token_id": OLD_STOP, "pad_token_id": OLD_STOP}, settings)
    rows = folder / "rows.jsonl"
    words = ("red", "blue", "one", "two")
    rows.write_text("".join(json.dumps({"prompt": f"say {w}", "completion": w}) + "\n" for w in words))
    finished(folder, base, steps=80, train=rows, test=rows)
    return folder


def test_every_config_names_the_stops_of_training_the_tokenizers_own_first(retargeted):
    merged = retargeted / "merged"
    own = AutoTokenizer.from_pretrained(merged).eos_token_id
    assert stops(merged, "config.json") == stops(merged, "generation_config.json") == [own, OLD_STOP]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((merged / name).read_text())["pad_token_id"] not in (own, OLD_STOP)


def test_other_generation_settings_stay_but_those_that_transformers_would_not_save(retargeted):
    for folder in (retargeted / "merged", retargeted / "run" / "adapter"):
        said = json.loads((folder / "generation_config.json").read_text())
        assert said["repetition_penalty"] == 1.01
        assert "temperature" not in said and "top_p" not in said


def test_the_adapter_folder_carries_stops_and_template(retargeted):
    adapter = retargeted / "run" / "adapter"
    assert stops(adapter, "generation_config.json") == stops(retargeted / "merged", "generation_config.json")
    assert AutoTokenizer.from_pretrained(adapter).chat_template


def test_plain_transformers_stops_where_the_run_does_and_the_record_says_so(retargeted):
    merged = retargeted / "merged"
    found = json.loads((merged / "fidelity.json").read_text())["generation"]
    assert found["agrees"] and found["stopped"] and found["new_tokens"] < 48
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    turns = [{"role": "user", "content": "say red"}]
    given = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    new = model.generate(**given, max_new_tokens=60)[0][given["input_ids"].shape[1] :]
    assert len(new) == found["new_tokens"] and int(new[-1]) in found["eos_token_id"]


def another_stop(hf, tokenizer):
    hf.generation_config.eos_token_id = OLD_STOP


def a_pad_that_stops(hf, tokenizer):
    hf.generation_config.pad_token_id = tokenizer.eos_token_id


def another_template(hf, tokenizer):
    tokenizer.chat_template = "Chat:" + tokenizer.chat_template


@pytest.mark.parametrize("spoil", [another_stop, a_pad_that_stops, another_template])
def test_a_folder_that_would_stop_elsewhere_is_an_error(retargeted, tmp_path, monkeypatch, spoil):
    original = write.write_merged

    def spoiled(dense, tokenizer, folder, shard_size, held=None):
        tokenizer = copy.deepcopy(tokenizer)
        spoil(dense.hf, tokenizer)
        original(dense, tokenizer, folder, shard_size, held)

    monkeypatch.setattr("lrft.api.merging.merge.write_merged", spoiled)
    with pytest.raises(ToleranceError, match=r"stops elsewhere than the run does.*generation_config\.json"):
        merge(RunFolder(retargeted / "run"), tmp_path / "merged", None)
    assert not json.loads((tmp_path / "merged" / "fidelity.json").read_text())["generation"]["agrees"]


def test_sampling_settings_of_a_sampling_checkpoint_stay(tiny, tmp_path):
    settings = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "eos_token_id": [OLD_STOP, 9],
        "pad_token_id": 9,
    }
    base = copied(tiny(), tmp_path / "base", {}, settings)
    merged = finished(tmp_path, base, render="plain")
    said = json.loads((merged / "generation_config.json").read_text())
    assert said["do_sample"] and said["temperature"] == 0.7 and said["top_p"] == 0.8
    assert said["eos_token_id"][1:] == [OLD_STOP, 9] and said["pad_token_id"] not in said["eos_token_id"]


def test_a_checkpoint_without_generation_config_gets_one(tiny, tmp_path):
    merged = finished(tmp_path, copied(tiny(), tmp_path / "base", {"temperature": 0.7}, None), render="plain")
    said = json.loads((merged / "generation_config.json").read_text())
    assert isinstance(said["eos_token_id"], int) and "temperature" not in said


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("gemma2", True)]
)
def test_transformers_and_peft_load_the_same_model_with_no_key_too_many_or_too_few(
    tiny, tmp_path, family, tied
):
    from peft import PeftModel

    merged = finished(tmp_path, tiny(family, tied=tied))
    assert len(list(merged.glob("model-*.safetensors"))) > 1
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert {path.name for path in merged.glob("*.safetensors")} == set(index["weight_map"].values())
    model, info = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    base = AutoModelForCausalLM.from_pretrained(tiny(family, tied=tied))
    peft = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    ids = torch.randint(8, 400, (1, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, peft(input_ids=ids).logits, atol=2e-4, rtol=1e-4)
        new = [m.generate(input_ids=ids, max_new_tokens=8, do_sample=False) for m in (model, peft)]
    assert torch.equal(*new)


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(
    ("more", "tag"),
    [
        ([], "text-generation"),
        (["model.head=[a, b]", "objective=classify", "data.format=classify"], "text-classification"),
        (["objective=contrastive", "data.format=retrieval"], "feature-extraction"),
    ],
)
def test_the_cards_say_what_the_model_is_for(retargeted, more, tag):
    recipe = load_recipe(retargeted / "recipe.yaml", more).recipe
    for card in (adapter_card(recipe, {}, None), merged_card(recipe, MERGED, "one")):
        assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == tag


def test_no_path_of_this_machine_is_in_the_merged_folder_or_on_the_adapters_card(retargeted):
    merged, adapter = retargeted / "merged", retargeted / "run" / "adapter"
    for path in [*merged.glob("*.json"), *merged.glob("*.yaml"), *merged.glob("*.md"), adapter / "README.md"]:
        assert str(retargeted) not in path.read_text(), path
        assert str(DATA) not in path.read_text(), path
    assert "base_model" not in front(merged) and "base_model" not in front(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        retargeted / "base"
    )


def test_the_card_of_the_merged_model_says_how_it_was_made(retargeted):
    text = (retargeted / "merged" / "README.md").read_text()
    for part in (
        "`base` with a trained lora adapter merged",
        "dequantized",
        "float32",
        "2 rows of data.eval",
    ):
        assert part in text
    assert front(retargeted / "merged")["library_name"] == "transformers"
    shared = yaml.safe_load((retargeted / "merged" / "recipe.yaml").read_text())
    assert shared["model"]["name"] == "base" and shared["data"]["train"]["source"] == "rows.jsonl"


def test_the_base_goes_by_its_hub_id_where_a_cache_path_tells_it(tiny, tmp_path):
    base = tmp_path / "hub" / "models--some-org--tiny-7B" / "snapshots" / "0123abc"
    base.parent.mkdir(parents=True)
    shutil.copytree(tiny(), base)
    merged = finished(tmp_path, base, render="plain")
    assert (
        front(merged)["base_model"] == front(tmp_path / "run" / "adapter")["base_model"] == "some-org/tiny-7B"
    )
    assert "base_model:adapter:some-org/tiny-7B" in front(tmp_path / "run" / "adapter")["tags"]
    assert yaml.safe_load((merged / "recipe.yaml").read_text())["model"]["name"] == "some-org/tiny-7B"


def test_the_shared_recipe_leaves_out_folders_and_keeps_texts_that_begin_with_a_slash(tiny):
    form = {"method": "columns", "prompt": "/think {q}", "completion": "{a}", "system": "/no_think\nUse km/h"}
    plain = {
        "model": {"name": str(tiny())},
        "data": {"train": "/somewhere/rows.jsonl", "eval": {"source": "/else/where.jsonl"}, "format": form},
    }
    shared = yaml.safe_load(recipe_to_share(Recipe.model_validate(plain)))
    assert {key: shared["data"]["format"][key] for key in form} == form
    assert shared["data"]["train"]["source"] == "rows.jsonl"
    assert shared["data"]["eval"]["source"] == "where.jsonl"
    assert "/" not in shared["model"]["name"]
