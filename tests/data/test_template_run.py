"""A run with `data.template`: what its adapter folder and its merged model say of template and stop tokens."""

from __future__ import annotations

import json

import pytest

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 2, targets: [q_proj]}}
data: {{train: {rows}, eval: {rows}, format: {format}, template: {template}}}
train: {{max_steps: 1, batch_size: 2, max_length: 128, device: cpu}}
"""
OWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>{% endfor %}"
TALK = [{"role": "user", "content": "how ?"}, {"role": "assistant", "content": "so"}]


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "own.jinja").write_text(OWN)
    rows = folder / "rows.jsonl"
    rows.write_text(f'{{"messages": {json.dumps(TALK)}, "text": "so"}}\n' * 4)

    def write(template, format="chat"):
        file = folder / f"{template}.yaml"
        file.write_text(RECIPE.format(model=tiny(), rows=rows, template=template, format=format))
        return load_recipe(file)

    return write


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A run whose template is a file that ends answers in a token that the model's own configs do not stop at."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    train(recipe("own.jinja"), folder, resume=False)
    return folder


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [ids])


def check(folder):
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == OWN
    assert (
        tokenizer.apply_chat_template(TALK, tokenize=False)
        == "user: how ?<|im_start|>assistant: so<|im_start|>"
    )
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokens(tokenizer, ends) == ["<|im_start|>", "<|im_end|>"] and tokenizer.eos_token == "<|im_start|>"
    assert tokenizer.pad_token == "<|pad|>"


def test_the_adapter_folder_carries_template_and_stops(run):
    check(run / "adapter")


def test_the_merged_model_carries_them_and_stops_where_the_run_does(run, tmp_path, short_answers):
    record = merge(run, tmp_path / "model")
    assert record["generation"]["agrees"]
    check(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert len(config["eos_token_id"]) == 2


def test_a_run_goes_by_the_template_that_it_began_with(run):
    kept = load_recipe(run / "recipe.yaml").recipe
    assert kept.data.template == OWN


def test_a_template_that_no_row_is_written_by_is_refused(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.template: no row is written by a chat template"):
        train(recipe("chatml", "text"), tmp_path / "run", resume=False)
