"""Recipes with published hyper-parameters: valid, of the published size, and runnable in form on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lrft.core.axes import FORMATS
from lrft.jobs.evaluate import evaluate_run
from lrft.jobs.train import train_recipe
from lrft.recipe.load import LoadedRecipe, load_recipe, validate
from lrft.train.folder import RunFolder

RECIPES = Path(__file__).parents[1] / "recipes"
COMMONSENSE = {
    "instruction": "Please answer with true or false: is ice cold?\n\nAnswer format: true/false",
    "input": "",
    "output": "the correct answer is true",
    "answer": "true",
}
METAMATH = {
    "query": "Ann has 2 pens and buys 3. How many has she?",
    "response": "2 + 3 = 5. #### 5 The answer is: 5",
    "type": "GSM_Rephrased",
    "original_question": "Ann has 2 pens and buys 3. How many pens?",
}
OASST = {"text": "### Human: What is ice?### Assistant: Frozen water."}

# (hidden, intermediate, layers, heads, key-value heads, vocabulary)
LLAMA_7B = ("llama", 4096, 11008, 32, 32, 32, 32000)
LLAMA3_8B = ("llama", 4096, 14336, 32, 32, 8, 128256)
MISTRAL_7B = ("mistral", 4096, 14336, 32, 32, 8, 32000)

# recipe -> a row of its data set, the real model's shape, and how many numbers train there
FULL: dict[str, tuple[dict[str, Any], tuple[Any, ...], int]] = {
    "llama-commonsense-dora": (COMMONSENSE, LLAMA_7B, 56_975_360),
    "llama2-commonsense-dora": (COMMONSENSE, LLAMA_7B, 56_975_360),
    "llama3-commonsense-dora": (COMMONSENSE, LLAMA3_8B, 57_409_536),
    "llama2-metamath-pissa": (METAMATH, LLAMA_7B, 319_815_680),
    "llama2-metamath-corda": (METAMATH, LLAMA_7B, 319_815_680),
    "llama2-metamath-lora_ga": (METAMATH, LLAMA_7B, 19_988_480),
    "llama2-metamath-lora_pro": (METAMATH, LLAMA_7B, 19_988_480),
    "llama2-oasst-qlora": (OASST, LLAMA_7B, 159_907_840),
    "mistral-metamath-lora_sb": (METAMATH, MISTRAL_7B, 2_064_384),
}
TINY_RANK = 8  # LoRA-GA needs twice the rank in directions, and a tiny key projection has 32


def loaded(name: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def shrunken(name: str, model: Path, rows: Path, *more: str) -> LoadedRecipe:
    """The recipe on a tiny model and local rows; its methods, storage and format as they are."""
    recipe = loaded(name).recipe
    overrides = [f"model.name={model}", f"data.train={rows}", "train.device=cpu"]
    overrides += ["train.max_steps=2", "train.batch_size=1", "train.gradient_accumulation=2"]
    overrides += ["train.max_length=256", "schedule.warmup_steps=null", "schedule.warmup_ratio=0"]
    if recipe.data.eval is not None:
        overrides += [f"data.eval={rows}", "train.eval_every=2"]
    if recipe.adapter.rank > TINY_RANK:
        overrides.append(f"adapter.rank={TINY_RANK}")
    if "batches" in type(recipe.init).model_fields:
        overrides.append("init.batches=2")
    return loaded(name, *overrides, *more)


@pytest.fixture
def rows_of(tmp_path):
    """`rows_of(row)` -> a file of a few rows like it."""

    def write(row: dict[str, Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(6)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config_of(tmp_path):
    """`config_of(shape)` -> a folder with the configuration of the real model, without weights."""

    def write(shape: tuple[Any, ...]) -> Path:
        from transformers.models.auto.configuration_auto import AutoConfig

        family, hidden, intermediate, layers, heads, kv_heads, vocabulary = shape
        AutoConfig.for_model(
            family,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            tie_word_embeddings=False,
        ).save_pretrained(tmp_path / "config")
        return tmp_path / "config"

    return write


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_validates(name):
    assert validate([str(RECIPES / f"{name}.yaml")]) == [(str(RECIPES / f"{name}.yaml"), [])]


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_trains_the_published_count_on_the_real_architecture(name, config_of):
    from lrft.assemble.measure import measure

    _, shape, trained = FULL[name]
    recipe = loaded(name, f"model.name={config_of(shape)}").recipe
    assert measure(recipe, optimizer=False)["trainable"] == trained


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_trains_two_steps_on_a_shrunken_model(name, tiny, rows_of, tmp_path):
    row, shape, _ = FULL[name]
    small = shrunken(name, tiny(shape[0], tied=False), rows_of(row))
    result = train_recipe(small, tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["step"] == 2
    assert [math.isfinite(line["loss"]) for line in lines if "loss" in line] == [True, True]
    full = loaded(name).recipe
    for axis, method in full.parts().items():
        assert small.recipe.parts()[axis].method == method.method
    assert small.recipe.quantization == full.quantization


@pytest.mark.parametrize(
    "name", [name for name in FULL if "metamath" in name or name == "llama-commonsense-dora"]
)
def test_a_full_recipe_is_scored_on_rows_of_its_benchmark(name, tiny, rows_of, tmp_path):
    row, shape, _ = FULL[name]
    full = loaded(name).recipe
    if row is METAMATH:
        tasks = [
            {**task.model_dump(), "format": task.format.model_dump(), "max_new_tokens": 4}
            for task in full.eval.tasks
        ]
        bench = {"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = 5\n#### 5"}
    else:  # as the recipe's last comment says
        prompt = full.data.format.completion.removesuffix("{output}")
        form = {"method": "columns", "prompt": prompt, "completion": "{output}"}
        tasks, bench = [{"method": "multiple_choice", "format": form}], COMMONSENSE
    (tmp_path / "bench").mkdir()
    scored = tmp_path / "bench" / "test.jsonl"
    scored.write_text(json.dumps(bench) + "\n", encoding="utf-8")
    chosen = json.dumps([{**task, "data": str(scored)} for task in tasks])
    small = shrunken(name, tiny(shape[0], tied=False), rows_of(row), f"eval.tasks={chosen}")
    train_recipe(small, tmp_path / "run", resume=False)
    results = evaluate_run(RunFolder(tmp_path / "run"), [], None, False, None)["adapter"]
    assert set(results) == {task["method"] for task in tasks}


@pytest.mark.parametrize(
    ("name", "prompt_ends", "completion_ends"),
    [
        ("llama-commonsense-dora", "", "### Response:\n                the correct answer is true"),
        ("llama2-metamath-pissa", "How many has she?\n\n### Response:", "The answer is: 5\n"),
        ("llama2-metamath-corda", "How many has she?\n\n### Response:", "The answer is: 5"),
        ("llama2-metamath-lora_ga", "How many has she?\nA:", " 2 + 3 = 5. #### 5 The answer is: 5"),
        ("llama2-metamath-lora_pro", "How many has she?\n\n### Response:\n", "The answer is: 5"),
        ("mistral-metamath-lora_sb", "How many has she?\n\n### Response:", "The answer is: 5"),
        ("llama2-oasst-qlora", "", OASST["text"]),
    ],
)
def test_a_full_recipe_learns_what_the_authors_learn(name, prompt_ends, completion_ends):
    config = loaded(name).recipe.data.format
    example = FORMATS.get(config.method)(config).example(FULL[name][0])
    assert example.prompt.endswith(prompt_ends)
    assert bool(example.prompt) == bool(prompt_ends)
    assert example.completion.endswith(completion_ends)


@pytest.mark.parametrize(
    ("name", "rows_a_step"),
    [
        ("llama-commonsense-dora", 16),
        ("llama2-commonsense-dora", 16),
        ("llama3-commonsense-dora", 16),
        ("llama2-metamath-pissa", 128),
        ("llama2-metamath-corda", 128),
        ("llama2-metamath-lora_ga", 32),
        ("llama2-metamath-lora_pro", 32),
        ("llama2-oasst-qlora", 16),
        ("mistral-metamath-lora_sb", 32),
    ],
)
def test_a_step_of_a_full_recipe_has_the_published_rows(name, rows_a_step):
    train = loaded(name).recipe.train
    assert train.batch_size * train.gradient_accumulation == rows_a_step
    assert not train.packing
